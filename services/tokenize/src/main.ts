/** The tokenize worker as a process of its own. */
import { getPriority, setPriority } from "node:os";
import { joinBus, natsEnv, quotasEnv } from "@loraline/bus";
import { objectsEnv, objectsFromEnv } from "@loraline/objects";
import { runService } from "@loraline/runtime";
import { z } from "zod";
import { createTokenizeService } from "./service.ts";

// What somebody waits for, an answer or a message on its way, comes before work on files, wherever they share a processor.
setPriority(Math.max(getPriority(), 5));

await runService({
  service: "tokenize",
  host: process,
  env: z.object({
    ...natsEnv,
    ...objectsEnv,
    ...quotasEnv,
    LORALINE_BASES_DIR: z.string().describe("Bases in Hugging Face's layout, each with a base.json."),
  }),
  async start({ env, log, telemetry, ...service }) {
    const running = new AsyncDisposableStack();
    const { nc, bus } = running.use(await joinBus({ env, log, telemetry, ...service }, "tokenize"));
    const objects = running.use(await objectsFromEnv(env, nc, { log }));
    // No traffic is routed to this pod, so that being not ready costs nothing and is seen by operators.
    service.health.check("objects", objects.problem);
    running.use(await createTokenizeService({ bus, objects, telemetry, basesDir: env.LORALINE_BASES_DIR, quotas: env.LORALINE_QUOTAS }));
    return running;
  },
});
