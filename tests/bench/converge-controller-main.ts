/** The serve controller as a process of its own, so that the benchmark can measure its CPU time, memory and messages alone. */
import { connectBus, createBus } from "@loraline/bus";
import type { EngineRecord } from "@loraline/contracts";
import { createJetStreamObjects } from "@loraline/objects";
import { createLog, createTelemetry } from "@loraline/runtime";
import { createServeService } from "@loraline/serve";
import { cpuMs } from "./table.ts";

export interface ControllerSettings {
  servers: string;
  record: EngineRecord;
}
export interface ControllerUsage {
  cpuMs: number;
  rss: number;
  messages: number;
  bytes: number;
}

const { servers, record } = JSON.parse(process.argv[2] ?? "{}") as ControllerSettings;
const nc = await connectBus({ servers, name: "serve" });
const log = createLog({ service: "serve", level: process.env["LOG_LEVEL"] ?? "silent" });
const telemetry = createTelemetry({ service: "serve" });
const bus = createBus({ nc, log, telemetry, source: "serve" });
// More adapters than a tenant may have by default: then the gate would refuse the last ones, and the bench wait for them in vain.
const quotas = { default: { adapters: null } };
await createServeService({ bus, objects: await createJetStreamObjects(nc), log, telemetry, engines: [record], quotas });

process.on("disconnect", () => process.exit());
process.on("message", () => {
  const { inMsgs, outMsgs, inBytes, outBytes } = nc.stats();
  const usage: ControllerUsage = {
    cpuMs: cpuMs(),
    rss: process.memoryUsage.rss(),
    messages: inMsgs + outMsgs,
    bytes: inBytes + outBytes,
  };
  process.send?.(usage);
});
process.send?.({ ready: true });
