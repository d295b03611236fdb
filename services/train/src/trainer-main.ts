/**
 * The trainer's container of an attempt's pod: a program without arguments. It starts the trainer when the courier asks for it, and holds no
 * credentials. On SIGTERM it ends as soon as the courier, which has the trainer save a checkpoint first, has let go of it.
 */
import { createLog, loadEnv } from "@loraline/runtime";
import { z } from "zod";
import { createLocalTrainerHost, trainerPathOf } from "./trainer-host/trainer-host.ts";
import { serveTrainer } from "./trainer-host/trainer-socket.ts";

const log = createLog({ service: "trainer", level: process.env.LOG_LEVEL ?? "info" });

async function main(): Promise<void> {
  const env = loadEnv(
    z.object({
      TRAINER_SOCKET: z.string().describe("Where the courier asks for the trainer."),
      LORALINE_PYTHON: z.string().default("python3"),
      LORALINE_TRAINER: z.string().optional().describe("The trainer's program. Default: this package's."),
    }),
    process.env,
  );
  // The courier has another user, and the same group.
  process.umask(0o002);
  const host = createLocalTrainerHost({ python: env.LORALINE_PYTHON, trainerPath: trainerPathOf(process.env), env: process.env });
  const serving = await serveTrainer(env.TRAINER_SOCKET, host, log);
  log.info({ socket: env.TRAINER_SOCKET }, "waiting for the courier");
  await new Promise<void>((resolve) => {
    for (const signal of ["SIGTERM", "SIGINT"] as const) process.on(signal, () => resolve());
  });
  await serving[Symbol.asyncDispose]();
}

main().then(
  () => process.exit(0),
  (error: unknown) => {
    log.fatal({ err: error }, error instanceof Error ? error.message : String(error));
    process.exit(1);
  },
);
