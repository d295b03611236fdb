/** Reconciles the FineTunes of one namespace: requests their runs, writes their statuses, and cancels runs whose resource is gone. */
import { isDeepStrictEqual } from "node:util";
import type { Bus } from "@loraline/bus";
import {
  type AdapterState,
  buckets,
  foldRun,
  isTraceparent,
  type Problem,
  runCancelRequested,
  runKey,
  runRequested,
  type RunState,
  traceparentAnnotation,
} from "@loraline/contracts";
import { type Kube, keyOf } from "@loraline/kube";
import { createKeyedQueue, type KeyedQueue, type Log, PermanentError, traceIdOf } from "@loraline/runtime";
import { isTrue } from "./conditions.ts";
import { decideFineTune, decideWanted, isToldByNobody, isWaitedFor, originOf, type Wait } from "./decide-fine-tune.ts";
import { idsOf } from "./ids.ts";
import { tell } from "./kube-events.ts";
import { judgeWanted, requestRun, type RequestRunDeps } from "./request-run.ts";
import { type FineTune, fineTunes } from "./resources.ts";
import { createStatusWriter, isOlder } from "./write-status.ts";

interface FineTunesDeps extends RequestRunDeps {
  kube: Kube;
  bus: Bus;
  log: Log;
  namespaceUid: string;
  /** The adapters' states, by name. */
  states: ReadonlyMap<string, AdapterState>;
}

interface FineTunes extends AsyncDisposable {
  onResource(key: string, object: FineTune | undefined): void;
  onRun(runId: string, run: RunState | undefined): void;
  onEngines(): void;
  /** To be called when an adapter's versions or its replicas have changed. */
  onAdapter(adapter: string): void;
  /** To be called once all resources and runs are known: from then on a run without a resource is one whose resource was deleted. */
  start(): void;
}

/** How often a FineTune that waits for a ConfigMap, or for room within a quota, is checked again: these are not watched. */
const lookAgainMs = 3000;
/** How long changes are collected before a FineTune is reconciled, because many replicas change at once. */
const gatherMs = 200;

export function createFineTunes(deps: FineTunesDeps): FineTunes {
  const { bus, kube, log, line, tenant, namespace, namespaceUid, states } = deps;
  const objects = new Map<string, FineTune>();
  const runs = new Map<string, RunState>();
  /** Run id to the key of its resource. */
  const keys = new Map<string, string>();
  /** By run: what it has waited for and that is not reported yet. It is collected, because a wait may end before the status is written. */
  const waits = new Map<string, Wait[]>();
  /** Keys of FineTunes whose run is not requested yet because of a problem that may pass. */
  const waiting = new Set<string>();
  const writer = createStatusWriter(kube, fineTunes);
  let started = false;

  const reconcile = async (key: string): Promise<void> => {
    const object = objects.get(key);
    if (object === undefined || object.metadata?.deletionTimestamp !== undefined) return;
    // The status of a finished run stays as it is: the streams may no longer have the run.
    if (isTrue(object.status?.conditions, "Finished")) return;
    const { name = "", uid = "", generation = 1 } = object.metadata ?? {};
    const ids = idsOf(object);
    const at = { tenant, id: ids.run };
    let run = runs.get(ids.run) ?? (await requested(at.id));
    let problems: Problem[] = [];
    if (run === undefined) {
      const wanted = decideWanted(object.spec, ids, { namespace, namespaceUid, name, uid });
      problems = "problems" in wanted ? wanted.problems : judgeWanted(wanted, deps);
      if (problems.length === 0 && !("problems" in wanted)) {
        try {
          await requestRun(object, wanted, ids, deps);
          run = runs.get(ids.run) ?? (await requested(at.id));
          log.info({ finetune: key, runId: ids.run, adapter: wanted.spec.adapter }, "run requested");
        } catch (error) {
          if (!(error instanceof PermanentError)) throw error;
          problems = [{ code: error.code, message: error.message, param: error.param }];
        }
      }
    }
    const [problem] = problems;
    if (problem !== undefined && isWaitedFor(problem)) {
      waiting.add(key);
      if (isToldByNobody(problem)) queue.addAfter(key, lookAgainMs);
    } else waiting.delete(key);

    const waited = waits.get(ids.run) ?? [];
    const state = run === undefined ? undefined : states.get(run.spec.adapter);
    const version = state?.versions.findLast(({ runId }) => runId === ids.run);
    const annotated = object.metadata?.annotations?.[traceparentAnnotation];
    const { status, milestones } = decideFineTune({
      name,
      tenant,
      generation,
      before: object.status,
      runId: ids.run,
      run,
      waited,
      problems,
      traceId: traceIdOf(run?.trace ?? (isTraceparent(annotated) ? annotated : undefined)),
      version: version === undefined || state === undefined ? undefined : { version, ...line.held(state.engine, version) },
      now: new Date().toISOString(),
    });
    // Events are written before the status. After a crash they may be written twice, which is harmless, but must not be lost.
    await tell(kube, fineTunes, object, milestones, log);
    if (waited.length > 0) waits.set(ids.run, waits.get(ids.run)?.slice(waited.length) ?? []);
    const { written, afterMs } = await writer.write(object, status);
    const known = objects.get(key);
    if (written !== undefined && known !== undefined && !isOlder(written, known)) objects.set(key, written);
    if (afterMs !== undefined) queue.addAfter(key, afterMs);
    if (isTrue(status.conditions, "Finished")) writer.forget(uid);
    letGo(ids.run);
  };

  const forget = (runId: string): void => {
    runs.delete(runId);
    waits.delete(runId);
  };
  /** Forgets a run that has ended and whose status is written: most runs have ended, so they are not kept in memory. */
  const letGo = (runId: string): void => {
    const run = runs.get(runId);
    if (!started || run === undefined || run.finishedAt === null) return;
    const key = keys.get(runId);
    if (key === undefined || isTrue(objects.get(key)?.status?.conditions, "Finished")) forget(runId);
  };

  /** Reads a run that is not in memory: its status was written long ago, or it is not folded yet. */
  const requested = async (runId: string): Promise<RunState | undefined> => {
    const folded = await (await bus.bucket(buckets.runs)).get(runKey({ tenant, id: runId }));
    if (folded !== undefined) return folded.value;
    const event = await bus.first(runRequested, { tenant, id: runId });
    return event && foldRun(undefined, { ...event, type: runRequested.type });
  };

  /** Cancels the run if its resource is gone. Asks the API server, because a watch may be behind. */
  const settleRun = async (runId: string): Promise<void> => {
    const run = runs.get(runId);
    const origin = run === undefined ? undefined : originOf(run);
    if (run === undefined || origin === undefined || run.finishedAt !== null || run.cancelRequested) return;
    const there = await kube.get(fineTunes, { namespace, name: origin.name });
    if (there?.metadata?.uid === origin.uid && there.metadata.deletionTimestamp === undefined) return;
    await bus.publish(
      runCancelRequested,
      { tenant, id: runId },
      { by: `finetune/${namespace}/${origin.name} deleted` },
      { traceparent: run.trace, actor: { kind: "kubernetes", id: `finetune/${namespace}/${origin.name}` } },
    );
    log.info({ runId, finetune: `${namespace}/${origin.name}` }, "the FineTune is gone; its run is cancelled");
  };

  const queue: KeyedQueue = createKeyedQueue({
    concurrency: 8,
    log,
    work: (key) => reconcile(key),
    measured: { metrics: deps.telemetry.metrics, name: `finetunes of ${deps.namespace}` },
  });
  const orphans = createKeyedQueue({ concurrency: 2, log, work: settleRun });
  const mayBeOrphan = (runId: string, run: RunState): void => {
    const origin = originOf(run);
    if (!started || origin?.namespace !== namespace || origin.namespaceUid !== namespaceUid || run.finishedAt !== null) return;
    const object = objects.get(`${namespace}/${origin.name}`);
    if (object?.metadata?.uid !== origin.uid || object.metadata.deletionTimestamp !== undefined) orphans.add(runId);
  };

  return {
    onResource(key, object) {
      const before = objects.get(key);
      if (object === undefined) {
        objects.delete(key);
        waiting.delete(key);
      } else objects.set(key, object);
      if (before !== undefined && before.metadata?.uid !== object?.metadata?.uid) {
        const { run } = idsOf(before);
        keys.delete(run);
        writer.forget(before.metadata?.uid ?? "");
        const known = runs.get(run);
        if (known !== undefined) mayBeOrphan(run, known);
      }
      if (object === undefined) return;
      keys.set(idsOf(object).run, keyOf(object));
      const known = runs.get(idsOf(object).run);
      if (known !== undefined && object.metadata?.deletionTimestamp !== undefined) mayBeOrphan(known.runId, known);
      if (started) queue.add(key);
    },
    onRun(runId, run) {
      if (run === undefined || originOf(run)?.namespace !== namespace) {
        forget(runId);
        return;
      }
      if (run.queue !== null && !isDeepStrictEqual(run.queue, runs.get(runId)?.queue)) {
        waits.set(runId, [...(waits.get(runId) ?? []), { attempt: run.attempt, ...run.queue }]);
      }
      runs.set(runId, run);
      const key = keys.get(runId);
      if (key !== undefined && started) queue.add(key);
      mayBeOrphan(runId, run);
      letGo(runId);
    },
    onEngines() {
      for (const key of waiting) queue.addAfter(key, gatherMs);
    },
    onAdapter(adapter) {
      // Goes over the runs in memory, which are mostly those under way; there are many more resources.
      for (const [runId, run] of runs) {
        const key = keys.get(runId);
        if (key === undefined || run.spec.adapter !== adapter || run.trained === null) continue;
        if (!isTrue(objects.get(key)?.status?.conditions, "Finished")) queue.addAfter(key, gatherMs);
      }
    },
    start() {
      started = true;
      for (const key of objects.keys()) queue.add(key);
      for (const [runId, run] of runs) {
        mayBeOrphan(runId, run);
        letGo(runId);
      }
    },
    async [Symbol.asyncDispose]() {
      await Promise.all([queue[Symbol.asyncDispose](), orphans[Symbol.asyncDispose]()]);
    },
  };
}
