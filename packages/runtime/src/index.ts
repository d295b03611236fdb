export { loadEnv } from "./env.ts";
export {
  backoffMs,
  causesOf,
  type Disposition,
  dispositionOf,
  explainSystemError,
  messageOf,
  natsFull,
  natsOutage,
  PermanentError,
  type PermanentErrorOptions,
  problemOf,
  RetryLaterError,
  UnavailableError,
} from "./errors.ts";
export {
  allowListOf,
  createGuardedFetch,
  type GuardedFetch,
  type GuardedFetchOptions,
  type GuardedRequest,
  type GuardedResponse,
  nonPublicRange,
  parseFetchUrl,
} from "./fetch-guarded.ts";
export { createHealth, type Health, type HealthAnswer, type HealthServer } from "./health.ts";
export { keepTrying, type KeepTryingOptions } from "./keep-trying.ts";
export { createKeyedQueue, type KeyedQueue, type KeyedQueueOptions } from "./keyed-queue.ts";
export { createLog, type Log, type LogOptions } from "./log.ts";
export { type HostProcess, runService, type ServiceContext, type ServiceOptions } from "./service.ts";
export { type Exit, type GuardedChild, killGroup, processIdentity, spawnGuarded, type SpawnGuardedOptions } from "./spawn-guarded.ts";
export {
  createTelemetry,
  readSpans,
  type SpanOptions,
  type SpanSink,
  type StoredSpan,
  type Telemetry,
  type TelemetryOptions,
  traceIdOf,
  traceparentOf,
} from "./telemetry.ts";
