/** The projector: folds the streams' events into KV `runs` and `datasets`. Nothing else writes these buckets. */
import type { Bus, HandlerContext, KvBucket, Received } from "@loraline/bus";
import {
  buckets,
  consumers,
  datasetEvents,
  datasetImportRequested,
  datasetKey,
  type datasetProgress,
  datasetReceived,
  type DatasetState,
  type EventDef,
  foldDataset,
  foldRun,
  runEvents,
  runCommandRefused,
  runKey,
  type runProgress,
  runRequested,
  type RunState,
} from "@loraline/contracts";
import { type Log, type Metrics, RetryLaterError } from "@loraline/runtime";
import { createLineMetrics } from "./line-metrics.ts";

type RunEventDef = (typeof runEvents)[number];

/** Commands about runs that exist, and what they do to them. */
const commandWords: { readonly [Type in RunEventDef["type"]]?: string } = {
  "run.cancel-requested.v1": "cancelled",
  "run.pause-requested.v1": "paused",
  "run.resume-requested.v1": "resumed",
};

/** After this many deliveries, progress whose run is not folded yet is dropped: progress is only for display. */
const progressPatience = 5;

/** An entry and what it is folded from. */
interface Projection<S, E extends EventDef> {
  bucket: KvBucket<S>;
  events: readonly E[];
  /** One of these is the first event of every entity. */
  begins: readonly E[];
  fold(state: S | undefined, event: Received<E>): S | undefined;
  /** Called for each event that changed an entry. */
  onFolded?(before: S | undefined, after: S, event: Received<E>): void;
  /** What of the entry comes from elsewhere. */
  keep?(state: S): Partial<S>;
}

/** @returns false when there is no entry that it could be folded into. */
async function foldInto<S>(
  bucket: KvBucket<S>,
  key: string,
  fold: (state: S | undefined) => S | undefined,
  onFolded?: (before: S | undefined, after: S) => void,
): Promise<boolean> {
  let isKnown = true;
  let change: { before: S | undefined; after: S } | undefined;
  await bucket.change(key, (state) => {
    const next = fold(state);
    isKnown = next !== undefined;
    change = next === undefined || next === state ? undefined : { before: state, after: next };
    return next === state ? undefined : next;
  });
  if (change !== undefined) onFolded?.(change.before, change.after);
  return isKnown;
}

/**
 * Several may run at once, in no order between them: writes are compare-and-set, folding an event twice changes nothing, and when an
 * event comes after a later one of its entity was folded, the entry is folded anew from the whole history.
 */
export async function createProjector({
  bus,
  log,
  metrics,
}: {
  bus: Bus;
  log: Log;
  /** Where what happens to datasets and runs is counted. Absent: nowhere. */
  metrics?: Metrics;
}): Promise<AsyncDisposable> {
  const counted = metrics && createLineMetrics(metrics);
  const runs = await bus.bucket(buckets.runs);
  const datasets = await bus.bucket(buckets.datasets);

  /** @returns false when the entity never began. */
  async function project<S extends { seq: number; wholeSeq?: number | null | undefined }, E extends EventDef>(
    { bucket, events, begins, fold, keep, onFolded }: Projection<S, E>,
    key: string,
    received: Received<E>,
  ): Promise<boolean> {
    const { at, seq } = received;
    let state = "folded" as "folded" | "passed" | "unknown";
    let change: { before: S | undefined; after: S } | undefined;
    await bucket.change(key, (current) => {
      const next = fold(current, received);
      change = next === undefined || next === current ? undefined : { before: current, after: next };
      if (current === undefined) state = next === undefined ? "unknown" : "folded";
      else state = seq < current.seq && seq > (current.wholeSeq ?? 0) ? "passed" : "folded";
      return next === current ? undefined : next;
    });
    if (change !== undefined) onFolded?.(change.before, change.after, received);
    if (state === "folded") return true;
    // Asked first, because that costs less: a client can name any number of entities that never were.
    if (state === "unknown" && (await Promise.all(begins.map((event) => bus.last(event, at)))).every((first) => first === undefined))
      return false;
    for (;;) {
      let whole: S | undefined;
      for await (const event of bus.replay(events, at)) whole = fold(whole, event);
      if (whole === undefined) return false;
      let isOld = false;
      let before: S | undefined;
      await bucket.change(key, (current) => {
        isOld = current !== undefined && current.seq > whole.seq;
        before = current;
        return isOld ? undefined : { ...whole, ...(current === undefined ? {} : keep?.(current)), wholeSeq: whole.seq };
      });
      if (isOld) continue;
      onFolded?.(before, whole, received);
      return true;
    }
  }

  const ofDatasets: Projection<DatasetState, (typeof datasetEvents)[number]> = {
    bucket: datasets,
    events: datasetEvents,
    begins: [datasetReceived, datasetImportRequested],
    fold: foldDataset,
    keep: ({ progress, settledAt }) => (settledAt === null ? { progress } : {}),
    ...(counted === undefined ? {} : { onFolded: counted.onDataset }),
  };
  const ofRuns: Projection<RunState, (typeof runEvents)[number]> = {
    bucket: runs,
    events: runEvents,
    begins: [runRequested],
    fold: foldRun,
    ...(counted === undefined ? {} : { onFolded: counted.onRun }),
    keep: ({ progress }) => ({ progress }),
  };

  const onDataset = async (received: Received<(typeof datasetEvents)[number]>, { log: eventLog }: HandlerContext): Promise<void> => {
    if (await project(ofDatasets, datasetKey(received.at), received)) return;
    eventLog.warn({ type: received.type }, "event about a dataset that was never received; dropped");
  };

  const onRun = async (received: Received<(typeof runEvents)[number]>, { log: eventLog }: HandlerContext): Promise<void> => {
    const isKnown = await project(ofRuns, runKey(received.at), received);
    if (!isKnown) eventLog.warn({ type: received.type }, "event about a run that was never requested; dropped");
    const words = commandWords[received.type];
    if (words !== undefined) await answerCommand(received, words, isKnown);
  };

  /** Who gives a command over NATS waits for an event, and would wait for ever. */
  const answerCommand = async ({ at, seq, type, time }: Received<RunEventDef>, words: string, isKnown: boolean): Promise<void> => {
    const tell = (code: "RUN_UNKNOWN" | "RUN_OVER", message: string): Promise<unknown> =>
      bus.publish(runCommandRefused, at, { command: type, code, message, param: null }, { key: `refused-${seq}` });
    if (!isKnown) {
      await tell("RUN_UNKNOWN", `there is no run ${at.id}, so nothing is ${words}. Check the id on the command's subject.`);
      return;
    }
    const run = (await runs.get(runKey(at)))?.value;
    if (run !== undefined && run.finishedAt !== null && run.finishedAt < time)
      await tell("RUN_OVER", `run ${at.id} has ended (${run.phase}), so nothing is ${words}.`);
  };

  type Progress = Received<typeof runProgress | typeof datasetProgress>;
  const onProgress = async (received: Progress, { log: eventLog, deliveries }: HandlerContext): Promise<void> => {
    const isKnown =
      received.type === "run.progress.v1"
        ? await foldInto(
            runs,
            runKey(received.at),
            (state) => foldRun(state, received),
            (before, after) => counted?.onRun(before, after, received),
          )
        : await foldInto(datasets, datasetKey(received.at), (state) => foldDataset(state, received));
    if (isKnown) return;
    // Progress is in another stream, so it may be read before what its run or dataset begins with.
    const begins = received.type === "run.progress.v1" ? ofRuns.begins : ofDatasets.begins;
    const began = await Promise.all(begins.map((event) => bus.last(event, received.at)));
    if (deliveries < progressPatience && began.some((event) => event !== undefined)) {
      throw new RetryLaterError("RUN_NOT_FOLDED", 500, "its beginning is not folded yet");
    }
    eventLog.warn({ type: received.type }, "progress of what never began; dropped");
  };

  const { projectorDatasets, projectorProgress, projectorRuns } = consumers;
  const started = await Promise.allSettled([
    bus.consume({ consumer: projectorDatasets, handlers: onDataset, traced: false }),
    bus.consume({ consumer: projectorRuns, handlers: onRun, traced: false }),
    bus.consume({ consumer: projectorProgress, handlers: onProgress, traced: false }),
  ]);
  // All consumers are stopped at the same time, because each waits until its pull request ends.
  const stop = async (): Promise<void> => {
    await Promise.all(started.filter((one) => one.status === "fulfilled").map(({ value }) => value[Symbol.asyncDispose]()));
  };
  const failed = started.find((one) => one.status === "rejected");
  if (failed !== undefined) {
    await stop();
    throw failed.reason;
  }
  log.debug("projector is folding");
  return { [Symbol.asyncDispose]: stop };
}
