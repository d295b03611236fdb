/**
 * What one engine process holds, as it was seen last: whether it answers, which process it is, and which adapters it lists. A step that
 * this agent takes is entered at once; everything else is read from the engine. What could not be read counts as not known.
 */
import { type ModuleShapes, readBaseModules } from "@loraline/models";
import type { Problem } from "@loraline/contracts";
import type { Log } from "@loraline/runtime";
import type { ObservedEngine } from "./adapters/decide-adapters.ts";
import { EngineRefusedError, EngineUnknownError, type LoraEngine } from "../engines/lora-engine.ts";

/** An engine that answers no health check for this long is away. Shorter silences are those of a busy engine. */
const silentMs = 10_000;

export interface EngineObserver {
  /** The process answers, and its first slow step is behind it. */
  readonly ready: boolean;
  /** Why it is not ready although it answers. */
  readonly problem: Problem | null;
  /** Which process was seen last; empty before the first. */
  readonly incarnation: string;
  /** What the engine lists. undefined: the engine is away, or could not be read. */
  readonly observed: ObservedEngine | undefined;
  /** The base's own modules, where its files are to be seen from here. */
  readonly baseModules: ModuleShapes | undefined;
  /** Reads the engine. A call that comes during a look gets the next one: what it wants to know may have happened after the look began. */
  look(): Promise<void>;
  checkHealth(): Promise<void>;
  /** Which process has given the answers of before the call: read after it, as `look` is, unless the connections tell. @throws EngineUnknownError */
  readIncarnation(): Promise<string>;
  /** A step about this name ended. `path`: the engine lists it from there now; null: it does not list it; undefined: not known. */
  stepped(loraName: string, path?: string | null): void;
}

export function createEngineObserver({
  client,
  base,
  log,
  incarnation: ownIncarnation,
  check,
  onChange,
}: {
  client: LoraEngine;
  base: string;
  log: Log;
  incarnation?: (() => Promise<string>) | undefined;
  /** Runs when an engine comes, or comes back. A problem keeps the replica from being ready. */
  check?: (() => Promise<Problem | null>) | undefined;
  /** ready: an engine process came. away: it went. listed: what it lists was read. */
  onChange(what: "ready" | "away" | "listed"): void;
}): EngineObserver {
  /** What was read last, over connections that were open before: as long as no other is opened, it stays true. */
  let lastRead: { incarnation: string; connections: number } | undefined;
  const readIncarnation = async (): Promise<string> => {
    const connections = client.connections();
    const read = await (ownIncarnation ?? client.incarnation)();
    lastRead = ownIncarnation === undefined && client.connections() === connections ? { incarnation: read, connections } : undefined;
    return read;
  };
  const readAnew = shared(readIncarnation);
  let ready = false;
  let problem: Problem | null = null;
  let incarnation = "";
  let listed: Map<string, string | null> | undefined;
  let baseModules: ModuleShapes | undefined;
  let silentSince: number | undefined;
  /** LoRA names that a step was taken about since the present look began: what the look read of them may be older than the step. */
  let stepped = new Set<string>();

  const away = (why: string): void => {
    listed = undefined;
    if (!ready) return;
    ready = false;
    log.warn({ why }, "engine away");
    onChange("away");
  };

  /** Takes in an engine process that was not seen before: nothing is proven in it, and its first step is slow. False: it does not become ready. */
  const greet = async (now: string, modelPath: string | null): Promise<boolean> => {
    if (now !== incarnation) {
      log.info({ before: incarnation, now }, "engine process started; everything is proven again");
      baseModules = modelPath === null ? undefined : await readBaseModules(modelPath);
    }
    const found = (await check?.()) ?? null;
    if (found !== null) {
      if (problem?.message !== found.message) log.error(found, "the replica does not become ready");
      problem = found;
      incarnation = now;
      away(found.message);
      return false;
    }
    try {
      await client.nextTokenLogprobs(base, [[1]], [1]);
    } catch (error) {
      if (!(error instanceof EngineRefusedError)) throw error;
      log.error({ err: error }, "the engine cannot answer probes: no adapter can be proven on it");
    }
    problem = null;
    incarnation = now;
    ready = true;
    onChange("ready");
    return true;
  };

  const lookNow = async (): Promise<void> => {
    stepped = new Set();
    try {
      const now = await readIncarnation();
      const models = await client.listModels();
      const seen = new Map(models.filter(({ isLora }) => isLora).map(({ name, path }) => [name, path]));
      if (now !== incarnation || !ready) {
        if (!(await greet(now, models.find(({ name }) => name === base)?.path ?? null))) return;
      } else {
        for (const name of stepped) {
          const known = listed?.get(name);
          if (known === undefined) seen.delete(name);
          else seen.set(name, known);
        }
      }
      listed = seen;
      onChange("listed");
    } catch (error) {
      listed = undefined;
      if (error instanceof EngineUnknownError && error.unauthorized) {
        if (problem?.message !== error.message) log.error({ err: error }, "the replica does not become ready");
        problem = { code: "ENGINE_KEY_REFUSED", message: error.message, param: "ENGINE_API_KEY" };
        away(error.message);
      } else if (error instanceof EngineUnknownError && error.gone) away(error.message);
      else log.warn({ err: error }, "engine could not be read; nothing is concluded from that");
    }
  };

  const look = shared(lookNow);

  return {
    get ready() {
      return ready;
    },
    get problem() {
      return problem;
    },
    get incarnation() {
      return incarnation;
    },
    get observed() {
      return listed === undefined ? undefined : { incarnation, listed };
    },
    get baseModules() {
      return baseModules;
    },
    look,
    readIncarnation: async () => (lastRead?.connections === client.connections() ? lastRead.incarnation : readAnew()),
    async checkHealth() {
      const health = await client.health();
      if (health === "silent") {
        silentSince ??= performance.now();
        if (performance.now() - silentSince > silentMs) away("no answer to health checks");
        return;
      }
      silentSince = undefined;
      if (health === "away") away("its health check fails");
      else if (listed === undefined) await look();
    },
    stepped(loraName, path) {
      if (path === undefined) return;
      stepped.add(loraName);
      if (path === null) listed?.delete(loraName);
      else listed?.set(loraName, path);
    },
  };
}

/** Calls never share a reading that began before them: those that come during one share the next. */
function shared<T>(read: () => Promise<T>): () => Promise<T> {
  let running: Promise<T> | undefined;
  let next: Promise<T> | undefined;
  const ask = (): Promise<T> => {
    if (running === undefined) {
      running = read().finally(() => (running = undefined));
      return running;
    }
    const again = (): Promise<T> => {
      next = undefined;
      return ask();
    };
    next ??= running.then(again, again);
    return next;
  };
  return ask;
}
