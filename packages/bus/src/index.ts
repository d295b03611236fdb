export { type Bus, type BusDeps, createBus, type PublishOptions } from "./bus.ts";
export { connectBus, type ConnectBusOptions, connectFromEnv, connectService, natsEnv } from "./connect.ts";
export type { ConsumeOptions, HandlerContext, Handlers } from "./consume.ts";
export type { DeadLetters } from "./dead-letters.ts";
export { ensureStreams, type EnsureStreamsOptions, streamsInPlace } from "./ensure-streams.ts";
export { messageId, open, type RawMessage, type Received, seal } from "./envelope.ts";
export type { KvBucket, KvEntry } from "./kv.ts";
export { createReplicaTable, type ReplicaEntry, type ReplicaTable } from "./replica-table.ts";
export { readKeptSpans, spanSink } from "./spans.ts";
