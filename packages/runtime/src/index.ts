export { countBytes } from "./count-bytes.ts";
export { loadEnv } from "./env.ts";
export {
  backoffMs,
  causesOf,
  dispositionOf,
  explainSystemError,
  messageOf,
  natsFull,
  natsOutage,
  PermanentError,
  problemOf,
  RetryLaterError,
  UnavailableError,
} from "./errors.ts";
export { allowListOf, createGuardedFetch, type GuardedFetch, parseFetchUrl } from "./fetch-guarded.ts";
export { createHealth } from "./health.ts";
export { keepTrying, type KeepTryingOptions } from "./keep-trying.ts";
export { createKeyedQueue, type KeyedQueue } from "./keyed-queue.ts";
export { createLog, type Log } from "./log.ts";
export { createMetrics, exemplarOf, type Metrics, serveMetrics } from "./metrics.ts";
export { nativeComputeType, processorFlags } from "./native-compute-type.ts";
export { runService, type ServiceContext } from "./service.ts";
export { type Exit, type GuardedChild, killGroup, processIdentity, signalProcess, spawnGuarded } from "./spawn-guarded.ts";
export {
  createTelemetry,
  openCollector,
  readSpans,
  type SpanSink,
  type StoredSpan,
  type Telemetry,
  traceIdOf,
  traceparentOf,
} from "./telemetry.ts";
