/** Many simulated engines in a process of their own, so that the benchmark does not count their CPU time as Loraline's. */
import { createSimulatedEngine } from "@loraline/testkit/servers";
import { cpuMs } from "./table.ts";

export interface EnginesSettings {
  base: string;
  count: number;
}
export type EnginesCommand = { kind: "restart"; engine: number } | { kind: "usage" };

const { base, count } = JSON.parse(process.argv[2] ?? "{}") as EnginesSettings;
const engines = await Promise.all(Array.from({ length: count }, () => createSimulatedEngine({ base })));

process.on("disconnect", () => process.exit());
process.on("message", (command: EnginesCommand) => {
  void (async () => {
    if (command.kind === "usage") return process.send?.({ cpuMs: cpuMs(), rss: process.memoryUsage.rss() });
    const engine = engines[command.engine];
    await engine?.stop();
    await engine?.start();
    return process.send?.({ at: Date.now() });
  })();
});
process.send?.({ urls: engines.map(({ url }) => url) });
