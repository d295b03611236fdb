/** The projector: folds the streams' events into KV `runs` and `datasets`. Nothing else writes these buckets. */
import type { Bus, HandlerContext } from "@loraline/bus";
import {
  buckets,
  consumers,
  type DatasetEvent,
  datasetKey,
  foldDataset,
  foldRun,
  type RunEvent,
  runKey,
  runRequested,
} from "@loraline/contracts";
import { type Log, RetryLaterError } from "@loraline/runtime";

/** After this many deliveries, progress whose run is not folded yet is dropped: progress is only for display. */
const progressPatience = 5;

/**
 * Several may run at once: the consumers hand out one event at a time, writes are compare-and-set, and folding an event
 * twice changes nothing.
 */
export async function createProjector({ bus, log }: { bus: Bus; log: Log }): Promise<AsyncDisposable> {
  const runs = await bus.bucket(buckets.runs);
  const datasets = await bus.bucket(buckets.datasets);

  const onDataset = async (received: DatasetEvent, { log: eventLog }: HandlerContext): Promise<void> => {
    let known = true;
    await datasets.change(datasetKey(received.at), (state) => {
      const next = foldDataset(state, received);
      known = next !== undefined;
      return next === state ? undefined : next;
    });
    if (!known) eventLog.warn({ type: received.type }, "event about a dataset that was never received; dropped");
  };

  const foldIntoRun = async (received: RunEvent): Promise<{ known: boolean }> => {
    let known = true;
    await runs.change(runKey(received.at), (state) => {
      const next = foldRun(state, received);
      known = next !== undefined;
      return next === state ? undefined : next;
    });
    return { known };
  };

  const onRun = async (received: RunEvent, { log: eventLog }: HandlerContext): Promise<void> => {
    const { known } = await foldIntoRun(received);
    if (!known) eventLog.warn({ type: received.type }, "event about a run that was never requested; dropped");
  };

  const onProgress = async (received: RunEvent, { log: eventLog, deliveries }: HandlerContext): Promise<void> => {
    const { known } = await foldIntoRun(received);
    if (known) return;
    // Progress is in another stream, so it may be read before the request of its run.
    if (deliveries < progressPatience && (await bus.last(runRequested, received.at)) !== undefined) {
      throw new RetryLaterError("RUN_NOT_FOLDED", 500, "the run's request is not folded yet");
    }
    eventLog.warn({ type: received.type }, "progress of a run that was never requested; dropped");
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
