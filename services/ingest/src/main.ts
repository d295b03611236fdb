/** The ingest worker as a process of its own. */
import { getPriority, setPriority } from "node:os";
import { joinBus, natsEnv, quotasEnv } from "@loraline/bus";
import { objectsEnv, objectsFromEnv } from "@loraline/objects";
import { runService } from "@loraline/runtime";
import { z } from "zod";
import { importEnv, importSettingsOf } from "./import-env.ts";
import { createIngestService } from "./service.ts";

// What somebody waits for, an answer or a message on its way, comes before work on files, wherever they share a processor.
setPriority(Math.max(getPriority(), 5));

await runService({
  service: "ingest",
  host: process,
  env: z.object({
    ...natsEnv,
    ...objectsEnv,
    ...importEnv,
    ...quotasEnv,
  }),
  async start({ env, log, telemetry, ...service }) {
    const running = new AsyncDisposableStack();
    const { nc, bus } = running.use(await joinBus({ env, log, telemetry, ...service }, "ingest"));
    const objects = running.use(await objectsFromEnv(env, nc, { log }));
    // No requests are routed to this process, so not being ready costs nothing, and operators see the reason.
    service.health.check("objects", objects.problem);
    running.use(await createIngestService({ bus, objects, telemetry, imports: importSettingsOf(env), quotas: env.LORALINE_QUOTAS }));
    return running;
  },
});
