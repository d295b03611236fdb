export { type Bus, createBus } from "./bus.ts";
export { connectBus, connectFromEnv, connectService, leave, natsEnv } from "./connect.ts";
export type { HandlerContext, WaitReason } from "./consume.ts";
export { ensureStreams, type EnsureStreamsOptions, streamsInPlace } from "./ensure-streams.ts";
export { messageId, type Received } from "./envelope.ts";
export type { KvBucket } from "./kv.ts";
export { createReplicaTable, type ReplicaEntry, type ReplicaTable } from "./replica-table.ts";
export { readKeptSpans, spanSink } from "./spans.ts";
export { tellWaiting } from "./tell-waiting.ts";
