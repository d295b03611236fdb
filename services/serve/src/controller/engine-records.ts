/** Writes KV `engines`: a record for each engine, from the chart's settings and the base's files; while these cannot be read, from the record before. */
import { join } from "node:path";
import type { KvBucket } from "@loraline/bus";
import { type EngineRecord, unreadDigest } from "@loraline/contracts";
import { readBaseRef } from "@loraline/models/base-ref";
import { type Log, PermanentError } from "@loraline/runtime";

/** Pure: takes the base's description from the last record while its files cannot be read. It still holds for replicas and adapters that exist. */
export function withWhatWasKnown<R extends Omit<EngineRecord, "updatedAt">>(described: R, known: EngineRecord | undefined): R {
  if (described.base.digest !== unreadDigest || known === undefined || known.base.name !== described.base.name) return described;
  const { base, derivedFrom, modules, toolCallParser, pictures, template, templateDigest, templateProbe } = known;
  return { ...described, base, derivedFrom, modules, toolCallParser, pictures, template, templateDigest, templateProbe };
}

interface BasesWatchDeps {
  engines: Pick<KvBucket<EngineRecord>, "put">;
  /** All engines; those whose bases cannot be read are checked again and again. What is declared wrongly (TWIN_…) takes a change of settings. */
  records: readonly EngineRecord[];
  basesDir: string;
  log: Log;
  /** Default 30 s. */
  everyMs?: number;
}

/**
 * Checks again and again whether bases that could not be read are readable now. A base with the same digest as before is used again. A
 * base that was never read has no known chat template, so serve has to be restarted for it.
 */
export function watchBases({ engines, records, basesDir, log, everyMs = 30_000 }: BasesWatchDeps): AsyncDisposable {
  const broken = new Map(
    records.filter(({ problem }) => problem && !problem.code.startsWith("TWIN_")).map((record) => [record.engine, record]),
  );
  const put = async (record: EngineRecord): Promise<void> => {
    await engines.put(record.engine, { ...record, updatedAt: new Date().toISOString() });
    broken.set(record.engine, record);
  };
  const look = async (record: EngineRecord): Promise<void> => {
    const { engine, base, problem } = record;
    const found = await readBaseRef(join(basesDir, base.name)).catch((error: unknown) => {
      if (!(error instanceof PermanentError)) log.debug({ err: error, engine }, "base still not readable");
    });
    if (found === undefined) {
      log.error({ engine, base: base.name, ...problem }, `nothing new is made for this engine: ${problem?.message}`);
      return;
    }
    if (found.digest === base.digest) {
      await put({ ...record, problem: null });
      broken.delete(engine);
      log.info({ engine, base: base.name }, "the base is back; runs for it are taken again");
      return;
    }
    const message = `engine "${engine}": base "${base.name}" is on the volume now, and not as it was when serve started. Restart serve (kubectl rollout restart).`;
    if (problem?.message === message) return;
    log.warn({ engine, base: base.name }, message);
    await put({ ...record, problem: { code: "BASE_NOT_READ", message, param: "base" } });
  };
  let looking: Promise<unknown> = Promise.resolve();
  const timer = setInterval(() => {
    looking = looking
      .then(() => Promise.all([...broken.values()].map(look)))
      .catch((error: unknown) => log.warn({ err: error }, "bases could not be looked after; trying again"));
  }, everyMs);
  if (broken.size === 0) clearInterval(timer);
  return {
    async [Symbol.asyncDispose]() {
      clearInterval(timer);
      await looking;
    },
  };
}
