/**
 * Many agents in one process, for the benchmark. Each has a simulated engine of its own in another process. The agents share what each
 * machine would have alone: the process, the connection to NATS, and the folder of adapter files.
 */
import { connectBus, createBus } from "@loraline/bus";
import type { BlobRef } from "@loraline/contracts";
import { createJetStreamObjects, type Objects } from "@loraline/objects";
import { createLog, createTelemetry } from "@loraline/runtime";
import { createAdapterFiles, createAgentService } from "@loraline/serve";
import { cpuMs } from "./table.ts";

export interface AgentsSettings {
  servers: string;
  engine: string;
  base: string;
  dir: string;
  from: number;
  /** URLs of the engines, one for each agent. */
  urls: string[];
}
export type AgentsCommand = { kind: "usage" } | { kind: "stop" };
export interface AgentsUsage {
  rss: number;
  cpuMs: number;
  messages: number;
  bytes: number;
}

const settings = JSON.parse(process.argv[2] ?? "{}") as AgentsSettings;
const { servers, engine, base, dir, from, urls } = settings;
const nc = await connectBus({ servers, name: `agents from ${from}` });
const log = createLog({ service: "agent", level: process.env["LOG_LEVEL"] ?? "silent" });
const telemetry = createTelemetry({ service: "agent" });
const bus = createBus({ nc, log, telemetry, source: "agent" });
const objects = inMemory(await createJetStreamObjects(nc));
const files = { ...createAdapterFiles({ dir, objects }), collect: async () => {} };

/** CPU time before the agents start: loading the program is not their work. */
const bootMs = cpuMs();
const agents: AsyncDisposable[] = [];
for (const [n, url] of urls.entries()) {
  agents.push(
    await createAgentService({
      bus,
      objects,
      log,
      telemetry,
      engine,
      base,
      files,
      adaptersDir: dir,
      replica: `r${from + n}`,
      engineUrl: url,
      publicUrl: url,
      maxLoraRank: 32,
      healthMs: 1000,
    }),
  );
}

process.on("disconnect", () => process.exit());
process.on("message", (command: AgentsCommand) => {
  void (async () => {
    if (command.kind === "usage") {
      const { inMsgs, outMsgs, inBytes, outBytes } = nc.stats();
      const usage: AgentsUsage = {
        rss: process.memoryUsage.rss(),
        cpuMs: cpuMs() - bootMs,
        messages: inMsgs + outMsgs,
        bytes: inBytes + outBytes,
      };
      process.send?.(usage);
    } else {
      await Promise.all(agents.map((agent) => agent[Symbol.asyncDispose]()));
      await nc.close();
      process.disconnect?.();
    }
  })();
});
process.send?.({ ready: true });

/** A blob is fetched once per process, where each replica would fetch it once. */
function inMemory({ get }: Pick<Objects, "get">): Pick<Objects, "get"> {
  const blobs = new Map<string, Promise<Uint8Array>>();
  const read = async (tenant: string, ref: BlobRef): Promise<Uint8Array> => Buffer.concat(await Array.fromAsync(await get(tenant, ref)));
  return {
    async get(tenant, ref) {
      const key = `${tenant}/${ref.digest}`;
      const blob = blobs.get(key) ?? read(tenant, ref as BlobRef);
      blobs.set(key, blob);
      // A failed fetch is forgotten, so that the next agent tries again.
      blob.catch(() => blobs.delete(key));
      const bytes = await blob;
      return (async function* () {
        yield bytes;
      })();
    },
  };
}
