export type { Audit } from "./audit/audit.ts";
export { type Bus, createBus } from "./bus.ts";
export { connectBus, connectFromEnv, type NatsAuth, natsAuthOf, natsEnv, natsSecretOf } from "./connect.ts";
export type { HandlerContext, WaitReason } from "./consume/consume.ts";
export { countAdapters, judgeNewAdapter } from "./quotas/adapter-quota.ts";
export { judgeWaitingRuns } from "./quotas/waiting-quota.ts";
export { createDatasetQuota } from "./quotas/dataset-quota.ts";
export { createHistoryQuota } from "./quotas/history-quota.ts";
export { ensureStreams, type EnsureStreamsOptions, streamsInPlace } from "./ensure-streams.ts";
export { messageId, type Received } from "./envelope.ts";
export type { KvBucket } from "./kv.ts";
export { joinBus } from "./join-bus.ts";
export {
  createInterner,
  createLeanReplicaTable,
  createReplicaTable,
  type LoraNames,
  type ReplicaEntry,
  type ReplicaTable,
} from "./replica-table.ts";
export { judgeRequestAgain } from "./take-commands.ts";
export { mostSpansRead, readKeptSpans, spanSink } from "./traces/spans.ts";
export { ownersOf, type SpanPlace, spansOfTenant, tenantAttribute } from "./traces/spans-of-tenant.ts";
export { followNats } from "./storage/nats-metrics.ts";
export { readStoredOfAll, type StoredBytes, sumOf } from "./storage/stored-bytes.ts";
export { judgeRunByQuotas, judgeStorage, quotasEnv, type TenantQuotas, watchQuotas } from "./tenant-quotas.ts";
export { tellProgress } from "./tell/tell-progress.ts";
export { tellWaiting } from "./tell/tell-waiting.ts";
