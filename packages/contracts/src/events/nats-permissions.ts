/**
 * What each service may say and hear on NATS. A service has a user of its own, named as it is; the chart writes these into the server's
 * configuration. Pure.
 */
import { type EventDef, filterFor } from "./define-event.ts";
import * as e from "./events.ts";
import { type BucketDef, buckets, type ConsumerDef, consumers, deadLetterSubject, type StreamDef, streams } from "./streams.ts";

/** `permissions` of a user in the server's configuration. */
interface NatsPermissions {
  publish: { allow: string[] };
  subscribe: { allow: string[] };
}

interface Needs {
  says?: readonly EventDef[];
  consumes?: readonly ConsumerDef[];
  /** Streams whose history it reads. */
  looksBack?: readonly StreamDef[];
  reads?: readonly BucketDef[];
  writes?: readonly BucketDef[];
  /** Buckets that it clears of many entries at once. */
  clears?: readonly BucketDef[];
  /** Each includes reading; `delete` cannot store anything. */
  objects?: "read" | "delete" | "write";
  /** `redrive`: sends a dead letter's message again, and removes the letter. */
  deadLetters?: "read" | "redrive";
}

const canConsume: readonly ConsumerDef[] = Object.values(consumers);
/** A dead letter is a message that somebody consumes. */
const consumed = [...new Set(canConsume.flatMap((consumer) => consumer.events))];
/** What a tenant may ask for by a message. Such a message may come from anybody's client, and what it says of itself is not believed. */
export const commands: readonly EventDef[] = [
  e.datasetImportRequested,
  e.datasetReceived,
  e.runRequested,
  e.runCancelRequested,
  e.adapterPromoteRequested,
  e.adapterRollbackRequested,
  e.adapterPlaceRequested,
  e.adapterKeepRequested,
  e.adapterVersionWanted,
  e.adapterVersionDeleteRequested,
];

/** Users of the line's own programs, and what each needs. */
const needs = {
  gateway: {
    says: [...commands, e.datasetDeleted],
    consumes: [consumers.projectorDatasets, consumers.projectorRuns, consumers.projectorProgress],
    looksBack: [streams.DATASETS, streams.RUNS, streams.PROGRESS, streams.ADAPTERS, streams.SPANS],
    reads: Object.values(buckets).filter(({ name }) => name !== "cache"),
    writes: [buckets.runs, buckets.datasets, buckets.traffic, buckets.limits, buckets.budgets, buckets.usage, buckets.keys],
    objects: "write",
    deadLetters: "redrive",
  },
  ingest: {
    says: [e.datasetReceived, e.datasetIngested, e.datasetRejected, e.datasetWaiting],
    consumes: [consumers.ingestDatasetReceived, consumers.ingestDatasetImportRequested],
    looksBack: [streams.DATASETS],
    reads: [buckets.cache],
    writes: [buckets.cache],
    objects: "write",
  },
  tokenize: {
    says: [e.runTokenized, e.runRejected, e.runWaiting, e.chunkRequested],
    consumes: [consumers.tokenizeRunRequested, consumers.tokenizeChunkRequested],
    looksBack: [streams.DATASETS, streams.RUNS, streams.CHUNKS],
    reads: [buckets.engines, buckets.cache, buckets.runs],
    writes: [buckets.cache],
    objects: "write",
    deadLetters: "read",
  },
  train: {
    says: [e.runQueued, e.runAttemptEnded, e.runFailed, e.runCancelled],
    looksBack: [streams.RUNS],
    reads: [buckets.runs],
  },
  courier: {
    says: [
      e.runStarted,
      e.runWaiting,
      e.runProgress,
      e.runCheckpointed,
      e.runAttemptEnded,
      // Attempts that began before an upgrade go on through it, with the courier of the older release.
      e.runPreempted,
      e.runTrained,
      e.runFailed,
      e.runCancelled,
    ],
    looksBack: [streams.RUNS],
    objects: "write",
  },
  serve: {
    says: [
      e.runServed,
      e.runWaiting,
      e.runFailed,
      e.runCancelled,
      e.adapterAccepted,
      e.adapterRefused,
      e.adapterPromoted,
      e.adapterRolledBack,
      e.adapterCanaryStarted,
      e.adapterCanaryStepped,
      e.adapterCanaryEnded,
      e.adapterVersionRetired,
      e.adapterVersionRecalled,
      e.adapterVersionDeleted,
      e.adapterNotMoved,
    ],
    consumes: [consumers.serveRunTrained, consumers.serveRunCancelRequested, consumers.serveAdapterCommands, consumers.serveVersionWanted],
    looksBack: [streams.RUNS, streams.ADAPTERS],
    reads: [buckets.adapters, buckets.engines, buckets.replicas, buckets.holdings, buckets.traffic],
    writes: [buckets.adapters, buckets.engines],
    clears: [buckets.holdings],
    // Removes what belonged to a version that was deleted.
    objects: "delete",
  },
  agent: {
    says: [e.adapterLoaded, e.adapterUnloaded],
    reads: [buckets.adapters, buckets.engines, buckets.replicas, buckets.holdings, buckets.traffic],
    writes: [buckets.replicas, buckets.holdings],
    clears: [buckets.holdings],
    objects: "read",
  },
  operator: {
    says: commands,
    looksBack: [streams.DATASETS, streams.RUNS, streams.ADAPTERS],
    reads: [buckets.runs, buckets.adapters, buckets.engines, buckets.replicas, buckets.holdings],
    objects: "write",
    deadLetters: "read",
  },
} as const satisfies Record<string, Needs>;

/** Below which a user's answers come: `NATS_INBOX_PREFIX`. Nobody hears another's answers, in which keys and state are. */
export const inboxPrefixOf = (user: string): string => `_INBOX_${user}`;

const api = (...calls: string[]): string[] => calls.map((call) => `$JS.API.${call}`);
const byteOrder = (subjects: Iterable<string>): string[] => [...new Set(subjects)].sort();

/** A consumer that lives as long as one question or watch, on a stream that may be read whole. */
const readStream = (stream: string): string[] => [
  ...api(
    `STREAM.INFO.${stream}`,
    `STREAM.MSG.GET.${stream}`,
    `DIRECT.GET.${stream}`,
    `DIRECT.GET.${stream}.>`,
    `CONSUMER.CREATE.${stream}`,
    `CONSUMER.CREATE.${stream}.>`,
    `CONSUMER.INFO.${stream}.*`,
    `CONSUMER.MSG.NEXT.${stream}.*`,
    `CONSUMER.DELETE.${stream}.*`,
  ),
  `$JS.FC.${stream}.>`,
];

function permissionsOf(user: string, of: Needs): NatsPermissions {
  const events = new Set([...(of.says ?? []), ...(of.deadLetters === "redrive" ? consumed : [])]);
  const publish = [
    ...api("INFO", `STREAM.INFO.${streams.DLQ.name}`),
    ...streams.SPANS.subjects,
    ...[...events].map((event) => filterFor(event)),
    ...(of.looksBack ?? []).flatMap(({ name }) => readStream(name)),
    ...(of.consumes ?? []).flatMap(({ durable, stream: { name } }) => [
      ...api(`CONSUMER.INFO.${name}.${durable}`, `CONSUMER.MSG.NEXT.${name}.${durable}`),
      `$JS.ACK.${name}.${durable}.>`,
      deadLetterSubject({ stream: name, durable, seq: "*" }),
      `$KV.${buckets.waited.name}.${durable}.*`,
    ]),
    ...[...(of.reads ?? []), ...(of.consumes === undefined ? [] : [buckets.waited])].flatMap(({ name }) => readStream(`KV_${name}`)),
    ...(of.writes ?? []).map(({ name }) => `$KV.${name}.>`),
    ...(of.clears ?? []).flatMap(({ name }) => api(`STREAM.PURGE.KV_${name}`)),
    ...(of.objects === undefined
      ? []
      : api("STREAM.INFO.OBJ_objects", "STREAM.MSG.GET.OBJ_objects", "DIRECT.GET.OBJ_objects", "DIRECT.GET.OBJ_objects.>")),
    // Pieces of a put that failed, and of what is deleted, are purged.
    ...(of.objects === "write" || of.objects === "delete" ? api("STREAM.PURGE.OBJ_objects") : []),
    ...(of.objects === "write" ? ["$O.objects.>"] : []),
    // A blob is deleted by a mark in its place; its pieces are another subject.
    ...(of.objects === "delete" ? ["$O.objects.M.>"] : []),
    ...(of.deadLetters === undefined ? [] : api("STREAM.MSG.GET.DLQ")),
    ...(of.deadLetters === "redrive" ? [...readStream("DLQ"), ...api("STREAM.MSG.DELETE.DLQ")] : []),
  ];
  return { publish: { allow: byteOrder(publish) }, subscribe: { allow: [`${inboxPrefixOf(user)}.>`] } };
}

/**
 * A tenant's own client: gives commands for its tenant, and follows its events as they come. No history and no blobs: consumers and the
 * object store know no tenants, so those are the gateway's to show. `{tenant}` stands for its name.
 */
const tenant: NatsPermissions = {
  publish: { allow: byteOrder(commands.map((event) => filterFor(event, { tenant: "{tenant}" }))) },
  subscribe: { allow: ["_INBOX_tenant_{tenant}.>", "loraline.{tenant}.>"] },
};

/** The Job that makes streams, consumers, buckets and the object store; also who backs them up: a backup's parts are acknowledged. */
const streamsUser: NatsPermissions = {
  publish: { allow: ["$JS.API.>", "$JS.SNAPSHOT.>"] },
  subscribe: { allow: ["_INBOX.>", `${inboxPrefixOf("streams")}.>`] },
};

export const natsPermissions: { services: Record<string, NatsPermissions>; tenant: NatsPermissions } = {
  services: {
    ...Object.fromEntries(Object.entries<Needs>(needs).map(([user, of]) => [user, permissionsOf(user, of)])),
    streams: streamsUser,
  },
  tenant,
};
