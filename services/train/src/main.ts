/** The train controller as a process of its own, with attempts as its child processes. */
import { connectFromEnv, createBus, natsEnv } from "@loraline/bus";
import { runService } from "@loraline/runtime";
import { z } from "zod";
import { courierCommand, createProcessLauncher } from "./process-launcher.ts";
import { createTrainService } from "./service.ts";

await runService({
  service: "train",
  host: process,
  // A stopping attempt saves a checkpoint first.
  shutdownMs: 40_000,
  env: z.object({
    ...natsEnv,
    TRAIN_JOBS_DIR: z.string().describe("Folder of the attempts; belongs to this process alone."),
    TRAIN_SLOTS: z.coerce.number().int().min(1).default(1).describe("Attempts at once: the number of devices."),
    LORALINE_BASES_DIR: z
      .string()
      .describe("Bases in Hugging Face's layout, each with a base.json. For the courier, which reads its own settings."),
  }),
  async start({ env, log, telemetry }) {
    const running = new AsyncDisposableStack();
    const nc = await connectFromEnv(env, "train");
    running.defer(() => nc.drain());
    const bus = createBus({ nc, log, telemetry, source: "train" });
    const launcher = await createProcessLauncher({
      dir: env.TRAIN_JOBS_DIR,
      slots: env.TRAIN_SLOTS,
      courierCommand: courierCommand(process.execPath),
      env: process.env,
      log,
    });
    running.use(launcher);
    running.use(await createTrainService({ bus, log, telemetry, launcher }));
    return running;
  },
});
