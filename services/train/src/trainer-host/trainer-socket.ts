/**
 * A trainer in another container of the pod, over a Unix socket in the folder that both containers share. One connection is one start of the
 * trainer; each message is a line of JSON.
 *
 *   courier ── start, kill ──► trainer's container         When the connection ends, the other side is gone: the container then kills the
 *           ◄── started, exited, problem ──                trainer, and the courier takes the trainer for killed.
 */
import { rm } from "node:fs/promises";
import { connect, createServer, type Socket } from "node:net";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { type Log, PermanentError, problemOf, RetryLaterError } from "@loraline/runtime";
import { z } from "zod";
import { type RunningTrainer, type TrainerExit, type TrainerHost, watchMemory } from "./trainer-host.ts";

const request = z.union([
  z.strictObject({ start: z.strictObject({ launch: z.array(z.string()), work: z.string(), logFile: z.string() }) }),
  z.strictObject({ kill: z.enum(["SIGTERM", "SIGKILL"]) }),
]);
const answer = z.union([
  z.strictObject({ started: z.strictObject({ pid: z.int() }) }),
  z.strictObject({
    exited: z.strictObject({
      code: z.int().nullable(),
      signal: z.string().nullable(),
      outOfMemory: z.strictObject({ limit: z.number().optional() }).optional(),
    }),
  }),
  z.strictObject({ problem: z.strictObject({ code: z.string().regex(/^[A-Z][A-Z0-9_]*$/), message: z.string() }) }),
]);

const say = (socket: Socket, message: z.input<typeof request> | z.input<typeof answer>): void => {
  if (socket.writable) socket.write(`${JSON.stringify(message)}\n`);
};
/** Calls back with each message; what is none is left out, since it comes from the other container. */
function hear<T>(socket: Socket, schema: z.ZodType<T>, onMessage: (message: T) => void): void {
  const lines = createInterface({ input: socket, crlfDelay: Infinity });
  lines.on("line", (line) => {
    let parsed: z.ZodSafeParseResult<T> | undefined;
    try {
      parsed = schema.safeParse(JSON.parse(line));
    } catch {
      return;
    }
    if (parsed.success) onMessage(parsed.data);
  });
  lines.on("error", () => {});
  socket.on("error", () => {});
}

/** Offers `host` on a socket. Disposing closes it, and waits until the trainers that still run are over. */
export async function serveTrainer(path: string, host: TrainerHost, log: Log): Promise<AsyncDisposable> {
  const running = new Set<Promise<void>>();
  const serve = async (socket: Socket): Promise<void> => {
    let trainer: RunningTrainer | undefined;
    let asked = false;
    let gone = false;
    const over = Promise.withResolvers<void>();
    socket.once("close", () => {
      gone = true;
      trainer?.kill("SIGKILL");
      if (!asked) over.resolve();
    });
    hear(socket, request, (message) => {
      if ("kill" in message) trainer?.kill(message.kill);
      else if (!asked) {
        asked = true;
        void start(message.start).finally(over.resolve);
      }
    });
    const start = async (wanted: Parameters<TrainerHost["start"]>[0]): Promise<void> => {
      try {
        trainer = await host.start(wanted);
        if (gone) trainer.kill("SIGKILL");
        log.info({ pid: trainer.pid }, "trainer started");
        say(socket, { started: { pid: trainer.pid } });
        const { outOfMemory, ...exit } = await trainer.exited;
        log.info(exit, "trainer ended");
        say(socket, { exited: { ...exit, ...(outOfMemory === undefined ? {} : { outOfMemory }) } });
      } catch (error) {
        const { code, message } = problemOf(error);
        log.error({ err: error }, "the trainer could not be started");
        say(socket, { problem: { code, message } });
      }
      socket.end();
    };
    await over.promise;
  };
  // That of a container that was here before is in the way.
  await rm(path, { force: true });
  const server = createServer((socket) => {
    const serving = serve(socket).finally(() => running.delete(serving));
    running.add(serving);
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(path, resolve);
  });
  return {
    async [Symbol.asyncDispose]() {
      server.close();
      await Promise.all(running);
    },
  };
}

/** How long the trainer's container may take until it listens: it starts before the courier's. */
const patienceMs = 120_000;
const killed: TrainerExit = { code: null, signal: "SIGKILL" };

/** The trainer's host behind a socket that `serveTrainer` offers. */
export const connectTrainerHost = (path: string, mostMs = patienceMs): TrainerHost => ({
  async start(wanted) {
    const socket = await connectWithin(path, mostMs);
    const started = Promise.withResolvers<number>();
    const exited = Promise.withResolvers<TrainerExit>();
    hear(socket, answer, (message) => {
      if ("started" in message) started.resolve(message.started.pid);
      else if ("problem" in message) {
        const { code, message: why } = message.problem;
        started.reject(code === "INTERNAL" ? new Error(why) : new PermanentError(code, why));
      } else {
        const { signal, code, outOfMemory } = message.exited;
        exited.resolve({
          code,
          signal: signal as NodeJS.Signals | null,
          outOfMemory: outOfMemory === undefined ? undefined : { limit: outOfMemory.limit },
        });
      }
    });
    socket.once("close", () => {
      started.reject(unreachable(path, "it closed the connection"));
      exited.resolve(killed);
    });
    say(socket, { start: wanted });
    const pid = await started.promise.catch((error: unknown) => {
      socket.destroy();
      throw error;
    });
    void exited.promise.then(() => socket.end());
    return {
      pid,
      exited: exited.promise,
      kill: (signal) => say(socket, { kill: signal === "SIGKILL" ? "SIGKILL" : "SIGTERM" }),
    };
  },
});

/** How long a warm trainer may take until it listens, which it does before it imports anything. */
const warmPatienceMs = 10_000;

/** Takes trainers from a warm one (warm-trainers.ts), and from `cold` when that is gone, or cannot make what is wanted. */
export const warmTrainerHost = (path: string, cold: TrainerHost, log: Log): TrainerHost => ({
  async start(wanted) {
    if (wanted.launch.length > 0) return cold.start(wanted);
    const withMemory = await watchMemory();
    try {
      const trainer = await connectTrainerHost(path, warmPatienceMs).start(wanted);
      return { ...trainer, exited: trainer.exited.then(withMemory) };
    } catch (error) {
      log.warn({ err: error }, "no warm trainer; starting one");
      return cold.start(wanted);
    }
  },
});

async function connectWithin(path: string, mostMs: number): Promise<Socket> {
  const until = Date.now() + mostMs;
  for (;;) {
    const tried = await new Promise<Socket | NodeJS.ErrnoException>((resolve) => {
      const socket = connect(path);
      socket.once("connect", () => resolve(socket));
      socket.once("error", resolve);
    });
    if (!(tried instanceof Error)) return tried;
    if (Date.now() > until) throw unreachable(path, tried.message);
    await sleep(50);
  }
}

const unreachable = (path: string, why: string): RetryLaterError =>
  new RetryLaterError(
    "TRAINER_UNREACHABLE",
    1000,
    `the trainer's container does not answer on ${path}: ${why}. See its log: kubectl logs POD -c trainer.`,
  );
