/** The train controller as a process of its own, with attempts as its child processes or as Jobs of a Kubernetes cluster. */
import { randomUUID } from "node:crypto";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { joinBus, natsEnv, quotasEnv } from "@loraline/bus";
import { PermanentError, runService } from "@loraline/runtime";
import { z } from "zod";
import { courierCommand, createProcessLauncher } from "./launchers/process-launcher.ts";
import { createWarmTrainers, warmEnv } from "./trainer-host/warm-trainers.ts";
import { createTrainService, type TrainServiceDeps } from "./controller/service.ts";

const trainEnv = z.object({
  ...natsEnv,
  ...quotasEnv,
  ...warmEnv,
  TRAIN_LAUNCHER: z.enum(["process", "kubernetes"]).default("process").describe("What runs attempts: child processes, or Jobs."),
  TRAIN_ATTEMPTS_DIR: z.string().optional().describe("process: folder of the attempts; belongs to this process alone."),
  TRAIN_SLOTS: z.coerce.number().int().min(1).default(1).describe("process: attempts at once, the number of devices."),
  LORALINE_BASES_DIR: z
    .string()
    .optional()
    .describe("process: bases in Hugging Face's layout, each with a base.json. For the courier, which reads its own settings."),
  TRAIN_COURIER_ENV: z
    .string()
    .transform((text, context) => {
      try {
        return JSON.parse(text) as unknown;
      } catch {
        context.addIssue({ code: "custom", message: "is no JSON" });
        return z.NEVER;
      }
    })
    .pipe(z.record(z.string(), z.string()))
    .default({})
    .describe(
      "process: JSON object of variables that couriers get instead of those of this process, such as NATS_USER and NATS_PASS where each NATS user has its own rights.",
    ),
  TRAIN_POD_FILE: z.string().optional().describe("kubernetes: JSON file that says how pods of attempts look; see job-manifest.ts."),
  TRAIN_CREDENTIALS_DIR: z
    .string()
    .optional()
    .describe("kubernetes: folder of the files that the courier gets as credentials, in the Secret that the pod file names."),
  TRAIN_LEASE_NAMESPACE: z.string().optional().describe("kubernetes: of the Lease. Default: the attempts'."),
  TRAIN_LEASE: z.string().default("loraline-train").describe("kubernetes: Lease of the one controller that acts."),
  POD_NAME: z.string().optional().describe("kubernetes: who holds the lease."),
});
type TrainEnv = z.infer<typeof trainEnv>;

const needed = (env: TrainEnv, name: "TRAIN_ATTEMPTS_DIR" | "LORALINE_BASES_DIR" | "TRAIN_POD_FILE"): string => {
  const value = env[name];
  if (value !== undefined) return value;
  throw new PermanentError("ENV_INVALID", `${name} is not set, and TRAIN_LAUNCHER=${env.TRAIN_LAUNCHER} needs it.`, { param: name });
};

await runService({
  service: "train",
  host: process,
  // A stopping attempt saves a checkpoint first.
  shutdownMs: 40_000,
  env: trainEnv,
  async start({ env, log, telemetry, ...service }) {
    const running = new AsyncDisposableStack();
    const { bus } = running.use(await joinBus({ env, log, telemetry, ...service }, "train"));
    if (env.TRAIN_LAUNCHER === "kubernetes") {
      running.use(await actUnderLease(env, { bus, log, telemetry }));
      return running;
    }
    needed(env, "LORALINE_BASES_DIR");
    const dir = needed(env, "TRAIN_ATTEMPTS_DIR");
    const courierEnv = { ...process.env, ...env.TRAIN_COURIER_ENV };
    const warm = createWarmTrainers({ env: courierEnv, idleMs: env.LORALINE_WARM_SECONDS * 1000, logFile: `${dir}-warm.log`, log });
    running.use(warm);
    const launcher = await createProcessLauncher({
      dir,
      warm,
      slots: env.TRAIN_SLOTS,
      courierCommand: courierCommand(process.execPath),
      env: courierEnv,
      log,
    });
    running.use(launcher);
    running.use(await createTrainService({ bus, log, telemetry, launcher, quotas: env.LORALINE_QUOTAS }));
    return running;
  },
});

/** Files of a mounted Secret, by name. Kubernetes keeps its own ones beside them, with names that begin with two dots. */
async function readFiles(folder: string): Promise<Record<string, Buffer>> {
  const names = (await readdir(folder)).filter((name) => !name.startsWith(".."));
  return Object.fromEntries(await Promise.all(names.map(async (name) => [name, await readFile(join(folder, name))] as const)));
}

/** One of several controllers acts; the others wait for the lease that it holds. */
async function actUnderLease(env: TrainEnv, { bus, log, telemetry }: Omit<TrainServiceDeps, "launcher">): Promise<AsyncDisposable> {
  // Only here: it takes half a second to load.
  const [{ createKube, withLease }, { createKubeLauncher }, { trainPodSettings }] = await Promise.all([
    import("@loraline/kube"),
    import("./launchers/kube-launcher.ts"),
    import("./launchers/job-manifest.ts"),
  ]);
  const path = needed(env, "TRAIN_POD_FILE");
  const settings = trainPodSettings.safeParse(JSON.parse(await readFile(path, "utf8")));
  if (!settings.success) {
    throw new PermanentError("ENV_INVALID", `${path} does not say how pods look: ${z.prettifyError(settings.error)}`, {
      param: "TRAIN_POD_FILE",
    });
  }
  const folder = env.TRAIN_CREDENTIALS_DIR;
  const readCredentials = folder === undefined ? undefined : () => readFiles(folder);
  const kube = createKube();
  const stopping = new AbortController();
  const holding = withLease(kube, {
    namespace: env.TRAIN_LEASE_NAMESPACE ?? settings.data.namespace,
    name: env.TRAIN_LEASE,
    // Not the process id: in containers all have the same.
    identity: env.POD_NAME ?? `train-${randomUUID()}`,
    log,
    signal: stopping.signal,
    async work(lost) {
      await using launcher = await createKubeLauncher({
        kube,
        settings: settings.data,
        log,
        signal: lost,
        ...(readCredentials === undefined ? {} : { readCredentials }),
      });
      if (lost.aborted) return;
      await using _service = await createTrainService({ bus, log, telemetry, launcher, quotas: env.LORALINE_QUOTAS });
      await new Promise<void>((resolve) => {
        if (lost.aborted) resolve();
        lost.addEventListener("abort", () => resolve(), { once: true });
      });
    },
  });
  return {
    async [Symbol.asyncDispose]() {
      stopping.abort();
      await holding;
    },
  };
}
