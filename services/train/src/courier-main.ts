/**
 * The courier as a process: `courier-main.ts FOLDER`, with the attempt's attempt.json in FOLDER, or its content in COURIER_ATTEMPT (a pod's
 * folder is empty). Exit codes: `courierExit`; why it should be tried again stands in outcome.json, in a pod also in its
 * termination message.
 */
import { writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { connectFromEnv, createBus, natsEnv, natsSecretOf, spanSink } from "@loraline/bus";
import { objectsEnv, objectsFromEnv } from "@loraline/objects";
import { createLog, createTelemetry, keepTrying, loadEnv, openCollector, PermanentError, RetryLaterError } from "@loraline/runtime";
import { z } from "zod";
import { runCourier } from "./courier/courier.ts";
import { type Outcome, outcomeRecord, readJson, writeJson } from "./attempt/attempt-files.ts";
import { attemptSpec } from "./attempt/attempt-spec.ts";
import { courierExit } from "./attempt/courier-exit.ts";
import { createLocalTrainerHost, trainerEnvironment, type TrainerHost, trainerPathOf } from "./trainer-host/trainer-host.ts";
import { connectTrainerHost, warmTrainerHost } from "./trainer-host/trainer-socket.ts";

const collector = await openCollector({ service: "courier", endpoint: process.env.OTEL_EXPORTER_OTLP_ENDPOINT });
const log = createLog({ service: "courier", level: process.env.LOG_LEVEL ?? "info", also: collector?.lines });

async function main(): Promise<number> {
  const env = loadEnv(
    z.object({
      ...natsEnv,
      ...objectsEnv,
      LORALINE_BASES_DIR: z.string(),
      LORALINE_PYTHON: z.string().default("python3"),
      LORALINE_TRAINER: z.string().optional().describe("The trainer's program. Default: this package's."),
      COURIER_TRAINER_SOCKET: z.string().optional().describe("Of the trainer's container. Absent: the trainer is a child process."),
      COURIER_WARM_SOCKET: z.string().optional().describe("Where trainers are made quickly; see warm-trainers.ts. Set by the launcher."),
      LORALINE_SPANS_DIR: z.string().optional(),
      LORALINE_TRACES: z.enum(["nats"]).optional(),
      COURIER_ATTEMPT: z.string().optional(),
      COURIER_INCARNATION: z.string().optional().describe("The pod's UID."),
      COURIER_HANG_SECONDS: z.coerce.number().int().min(1).default(1800).describe("A trainer without a sign of life for so long is ended."),
      JOB_COMPLETION_INDEX: z.coerce.number().int().min(0).default(0).describe("Kubernetes': which of several nodes this is."),
      OTEL_EXPORTER_OTLP_ENDPOINT: z.string().optional(),
    }),
    process.env,
  );
  const socket = env.COURIER_TRAINER_SOCKET;
  // The trainer has another user, and the same group.
  if (socket !== undefined) process.umask(0o002);
  const [dir] = process.argv.slice(2);
  if (dir !== undefined && env.COURIER_ATTEMPT !== undefined) await writeJson(join(dir, "attempt.json"), JSON.parse(env.COURIER_ATTEMPT));
  const spec = dir === undefined ? undefined : await readJson(join(dir, "attempt.json"), attemptSpec);
  if (dir === undefined || spec === undefined) {
    throw new PermanentError(
      "ATTEMPT_MISSING",
      `usage: courier FOLDER, with an attempt.json in FOLDER; there is none that can be read in ${dir}`,
    );
  }
  const stop = new AbortController();
  for (const signal of ["SIGTERM", "SIGINT"] as const) process.on(signal, () => stop.abort());

  const nc = await keepTrying("connect", connect, { log });
  const options = {
    spansDir: env.LORALINE_SPANS_DIR,
    otlpEndpoint: env.OTEL_EXPORTER_OTLP_ENDPOINT,
    keep: env.LORALINE_TRACES === undefined ? undefined : spanSink(nc),
  };
  const telemetry = createTelemetry({ service: "courier", ...options });
  collector?.sendMetrics(telemetry.metrics);
  const trainerTelemetry = createTelemetry({ service: "trainer", ...options });
  const bus = createBus({ nc, log, telemetry, source: "courier", secret: natsSecretOf(env) });
  const objects = await keepTrying("open the object store", () => objectsFromEnv(env, nc, { spoolDir: dir, log }), { log });
  const code = await runCourier({
    spec,
    dir,
    bus,
    objects,
    telemetry,
    trainerTelemetry,
    log,
    basesDir: env.LORALINE_BASES_DIR,
    // What the containers share is the socket's folder; nothing else of the courier can be reached from there.
    work: socket === undefined ? join(dir, "work") : join(dirname(socket), "attempt"),
    trainerHost: trainerHost(),
    stop: stop.signal,
    hangMs: env.COURIER_HANG_SECONDS * 1000,
    node: env.JOB_COMPLETION_INDEX,
    incarnation: env.COURIER_INCARNATION?.slice(0, 8),
    controllerTellsStop: env.COURIER_ATTEMPT !== undefined,
  });
  if (code === courierExit.retry && env.COURIER_ATTEMPT !== undefined) {
    const outcome = await readJson(join(dir, "outcome.json"), outcomeRecord);
    if (outcome !== undefined) await tellKubernetes(outcome);
  }
  // Spans, logs and metrics are worth a moment, and not a hanging collector.
  const flushed = Promise.all([telemetry, trainerTelemetry, collector].map(async (one) => one?.[Symbol.asyncDispose]()));
  await Promise.race([flushed, new Promise((resolve) => setTimeout(resolve, 2000))]).catch((error: unknown) =>
    log.warn({ err: error }, "spans not kept"),
  );
  return code;

  function trainerHost(): TrainerHost {
    if (socket !== undefined) return connectTrainerHost(socket);
    const cold = createLocalTrainerHost({
      python: env.LORALINE_PYTHON,
      trainerPath: trainerPathOf(process.env),
      env: trainerEnvironment(process.env),
    });
    return env.COURIER_WARM_SOCKET === undefined ? cold : warmTrainerHost(env.COURIER_WARM_SOCKET, cold, log);
  }

  function connect() {
    if (stop.signal.aborted) throw new PermanentError("STOPPED", "asked to stop before NATS answered");
    return connectFromEnv(env, "courier").catch((error: unknown) => {
      // It may only be restarting.
      if (error instanceof PermanentError && error.code === "NATS_UNREACHABLE") throw new RetryLaterError(error.code, 1000, error.message);
      throw error;
    });
  }
}

main().then(
  (code) => process.exit(code),
  async (error: unknown) => {
    const code = error instanceof PermanentError ? error.code : undefined;
    log[code === "STOPPED" ? "warn" : "fatal"]({ err: error }, error instanceof Error ? error.message : String(error));
    // Credentials that are being changed are nobody's fault in the run: the attempt says so, and does not count as one that crashed.
    if (code === "NATS_UNAUTHORIZED") await tellOutcome({ code, message: (error as Error).message });
    if (collector !== undefined)
      await Promise.race([collector[Symbol.asyncDispose](), new Promise((resolve) => setTimeout(resolve, 2000))]);
    process.exit(code === "STOPPED" || code === "NATS_UNAUTHORIZED" ? courierExit.retry : 1);
  },
);

/** Leaves in the attempt's folder why it should be tried again, and in a pod also where Kubernetes shows it. */
async function tellOutcome(outcome: Outcome): Promise<void> {
  const [dir] = process.argv.slice(2);
  if (dir !== undefined) await writeJson(join(dir, "outcome.json"), outcome).catch(() => {});
  if (process.env.COURIER_ATTEMPT !== undefined) await tellKubernetes(outcome);
}

async function tellKubernetes(outcome: Outcome): Promise<void> {
  const path = process.env.COURIER_TERMINATION_LOG ?? "/dev/termination-log";
  await writeFile(path, JSON.stringify(outcome).slice(0, 4000)).catch(() => {});
}
