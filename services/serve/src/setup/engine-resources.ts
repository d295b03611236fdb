/** Engines that come and go while serve runs: those that the operator makes of Engines. It writes their settings into a file that serve has mounted. */
import type { EngineRecord } from "@loraline/contracts";
import type { Log } from "@loraline/runtime";
import { describeEngines, readEngineSettings } from "./describe-engines.ts";

type Described = Omit<EngineRecord, "updatedAt">;

interface EngineResourcesDeps {
  /** JSON list of engineSettings; absent: there are none. */
  file: string;
  basesDir: string;
  log: Log;
  /** To be told of each engine that is new, or is another. */
  onEngine(record: Described): Promise<void>;
  onGone(engine: string): Promise<void>;
  /** How often the file is read. Default 5 s. */
  everyMs?: number;
  /** How often a base that cannot be read is tried again. Default 30 s. */
  againMs?: number;
}

/**
 * Tells what the file says now, then each change of it. A base that cannot be read is tried again and again: it may be on its way to the volume.
 * A file that cannot be read changes nothing.
 */
export async function followEngineResources(deps: EngineResourcesDeps): Promise<AsyncDisposable> {
  const { file, basesDir, log, onEngine, onGone, everyMs = 5000, againMs = 30_000 } = deps;
  const known = new Map<string, { settings: string; readAt: number; failed: boolean }>();
  let ended = false;

  const look = async (): Promise<void> => {
    const all = await readEngineSettings(file, []);
    for (const settings of all) {
      if (ended) return;
      const text = JSON.stringify(settings);
      const before = known.get(settings.engine);
      const isDue = before?.failed === true && performance.now() - before.readAt >= againMs;
      if (before?.settings === text && !isDue) continue;
      const [record] = await describeEngines([settings], basesDir);
      if (record === undefined) continue;
      const { engine, base, problem } = record;
      if (problem) log.error({ engine, base: base.name, ...problem }, `nothing new is made for this engine: ${problem.message}`);
      await onEngine(record);
      known.set(engine, { settings: text, readAt: performance.now(), failed: Boolean(problem) && !problem?.code.startsWith("TWIN_") });
    }
    const there = new Set(all.map(({ engine }) => engine));
    for (const engine of known.keys()) {
      if (there.has(engine)) continue;
      await onGone(engine);
      known.delete(engine);
      log.info({ engine }, "the Engine is gone; runs for its base are refused from now on, and its adapters stay");
    }
  };
  const again = (error: unknown): void =>
    log.warn({ err: error, file }, "the Engines' settings could not be read; what was known holds, and they are tried again");

  await look().catch(again);
  // One look at a time, however long a base takes to be read.
  let looking: Promise<void> | undefined;
  const timer = setInterval(() => {
    looking ??= look()
      .catch(again)
      .finally(() => (looking = undefined));
  }, everyMs);
  return {
    async [Symbol.asyncDispose]() {
      ended = true;
      clearInterval(timer);
      await looking;
    },
  };
}
