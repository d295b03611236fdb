/**
 * What each service may publish and subscribe to on NATS. Each service has its own NATS user, with the service's name; the chart writes
 * these permissions into the NATS server's configuration. Pure.
 */
import { type EventDef, filterFor } from "./define-event.ts";
import { commands, doorConsumer, doorFilter, tenantCommands } from "./door.ts";
import * as e from "./events.ts";
import {
  type BucketDef,
  buckets,
  type ConsumerDef,
  consumers,
  deadLetterSubject,
  storedSubject,
  type StreamDef,
  streams,
} from "./streams.ts";

/** `permissions` of a user in the server's configuration. */
interface NatsPermissions {
  publish: { allow: string[] };
  subscribe: { allow: string[] };
}

interface Needs {
  publishes?: readonly EventDef[];
  consumes?: readonly ConsumerDef[];
  /** Streams that the service reads from the past on. */
  readsHistory?: readonly StreamDef[];
  reads?: readonly BucketDef[];
  writes?: readonly BucketDef[];
  /** Buckets from which the service removes many entries at once. */
  clears?: readonly BucketDef[];
  /** Streams and buckets from which the service erases messages, so that their bytes are gone from the server's disk. */
  erases?: { streams: readonly StreamDef[]; buckets: readonly BucketDef[] };
  /** Whether it looks how much a tenant has in the object store. */
  readsStored?: true;
  /** Consumers of other services whose progress it looks at. */
  observes?: readonly ConsumerDef[];
  /** `write` and `delete` include reading; `delete` cannot store objects. */
  objects?: "read" | "delete" | "write";
  /** `redrive`: may send a failed message again, and remove it from the failed ones. */
  deadLetters?: "read" | "redrive";
  /** Writes into the audit log what it does itself. */
  audits?: true;
}

const canConsume: readonly ConsumerDef[] = Object.values(consumers);
/** Events that some consumer reads: only these can become failed messages. */
const consumed = [...new Set(canConsume.flatMap((consumer) => consumer.events))];
/** The NATS users of Loraline's own programs, and what each needs. */
const needs = {
  gateway: {
    publishes: [...commands, e.datasetDeleted, e.runCommandRefused, e.adapterCommandRefused],
    consumes: [consumers.projectorDatasets, consumers.projectorRuns, consumers.projectorProgress],
    readsHistory: [streams.DATASETS, streams.RUNS, streams.PROGRESS, streams.ADAPTERS, streams.SPANS, streams.AUDIT],
    reads: Object.values(buckets).filter(({ name }) => name !== "cache"),
    clears: [buckets.usage, buckets.sessions],
    writes: [
      buckets.runs,
      buckets.datasets,
      buckets.deletions,
      buckets.traffic,
      buckets.limits,
      buckets.budgets,
      buckets.usage,
      buckets.keys,
      buckets.sessions,
      buckets.responses,
      buckets.uploads,
    ],
    readsStored: true,
    objects: "write",
    deadLetters: "redrive",
    audits: true,
  },
  ingest: {
    publishes: [e.datasetReceived, e.datasetIngested, e.datasetRejected, e.datasetWaiting, e.datasetProgress],
    consumes: [consumers.ingestDatasetReceived, consumers.ingestDatasetImportRequested],
    readsHistory: [streams.DATASETS],
    reads: [buckets.cache, buckets.limits, buckets.datasets],
    writes: [buckets.cache],
    readsStored: true,
    objects: "write",
  },
  tokenize: {
    publishes: [e.runTokenized, e.runRejected, e.runCommandRefused, e.runWaiting, e.runProgress, e.chunkRequested],
    consumes: [consumers.tokenizeRunRequested, consumers.tokenizeChunkRequested],
    readsHistory: [streams.DATASETS, streams.RUNS, streams.CHUNKS],
    reads: [buckets.engines, buckets.cache, buckets.runs, buckets.adapters, buckets.limits],
    writes: [buckets.cache],
    readsStored: true,
    objects: "write",
    deadLetters: "read",
  },
  train: {
    publishes: [e.runQueued, e.runAttemptEnded, e.runFailed, e.runCancelled],
    readsHistory: [streams.RUNS],
    reads: [buckets.runs, buckets.limits, buckets.training],
    writes: [buckets.training],
  },
  courier: {
    publishes: [
      e.runStarted,
      e.runWaiting,
      e.runProgress,
      e.runCheckpointed,
      e.runAttemptEnded,
      // During an upgrade, attempts that began before it go on with the courier of the older release, which publishes this event.
      e.runPreempted,
      e.runAdapterWritten,
      e.runTrained,
      e.runFailed,
      e.runCancelled,
    ],
    readsHistory: [streams.RUNS],
    objects: "write",
  },
  serve: {
    publishes: [
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
      e.adapterCommandRefused,
      // Of a tenant that is deleted.
      e.runCancelRequested,
    ],
    consumes: [
      consumers.serveRunTrained,
      consumers.serveRunIncoming,
      consumers.serveRunCancelRequested,
      consumers.serveAdapterCommands,
      consumers.serveVersionWanted,
    ],
    readsHistory: [streams.RUNS, streams.ADAPTERS],
    reads: [
      buckets.limits,
      buckets.adapters,
      buckets.assignments,
      buckets.engines,
      buckets.replicas,
      buckets.holdings,
      buckets.traffic,
      // For the collector, which serve hosts, as all that follows.
      buckets.runs,
      buckets.datasets,
      buckets.cache,
      buckets.limits,
      buckets.deletions,
      buckets.leases,
      buckets.uploads,
    ],
    writes: [buckets.adapters, buckets.assignments, buckets.engines, buckets.cache, buckets.limits, buckets.deletions, buckets.leases],
    clears: [buckets.holdings],
    erases: {
      // The audit log stays, whatever is deleted.
      streams: Object.values(streams).filter(({ name }) => name !== streams.AUDIT.name),
      buckets: [
        buckets.runs,
        buckets.datasets,
        buckets.adapters,
        buckets.cache,
        buckets.limits,
        buckets.usage,
        buckets.responses,
        buckets.uploads,
        buckets.sessions,
      ],
    },
    observes: [consumers.projectorDatasets, consumers.projectorRuns],
    readsStored: true,
    objects: "delete",
    audits: true,
  },
  agent: {
    publishes: [e.adapterLoaded, e.adapterUnloaded],
    reads: [buckets.assignments, buckets.engines, buckets.replicas, buckets.holdings, buckets.traffic],
    writes: [buckets.replicas, buckets.holdings],
    clears: [buckets.holdings],
    objects: "read",
  },
  operator: {
    publishes: commands,
    readsHistory: [streams.DATASETS, streams.RUNS, streams.ADAPTERS],
    reads: [
      buckets.runs,
      buckets.adapters,
      buckets.engines,
      buckets.replicas,
      buckets.holdings,
      buckets.limits,
      buckets.training,
      buckets.traffic,
    ],
    readsStored: true,
    objects: "write",
    deadLetters: "read",
  },
} as const satisfies Record<string, Needs>;

/** Prefix of the subjects on which a user gets answers (`NATS_INBOX_PREFIX`). Each user has its own, because answers contain keys and state. */
export const inboxPrefixOf = (user: string): string => `_INBOX_${user}`;

const api = (...calls: string[]): string[] => calls.map((call) => `$JS.API.${call}`);
const byteOrder = (subjects: Iterable<string>): string[] => [...new Set(subjects)].sort();

/** Whether the pattern stands for every subject that the other one stands for. */
const covers = (tokens: readonly string[], others: readonly string[]): boolean => {
  return tokens.every((token, i) => {
    const there = others[i];
    if (token === ">") return there !== undefined;
    if (i === tokens.length - 1 && others.length !== tokens.length) return false;
    return token === there || (token === "*" && there !== undefined && there !== ">");
  });
};

/** Each subject at most once: the server brings a message into the other account once for each import that its subject matches. */
const eachOnce = (subjects: Iterable<string>): string[] => {
  // Every process makes this list at its start, so it compares no more than it has to: a subject without a wildcard covers no other.
  const all = byteOrder(subjects).map((subject) => ({ subject, tokens: subject.split(".") }));
  const patterns = all.filter(({ subject }) => /[*>]/.test(subject));
  return all.filter((one) => !patterns.some((other) => other !== one && covers(other.tokens, one.tokens))).map(({ subject }) => subject);
};

/** The API calls to read a whole stream: through a consumer that exists only for one question or watch. */
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
  const events = new Set([...(of.publishes ?? []), ...(of.deadLetters === "redrive" ? consumed : [])]);
  const publish = [
    ...api("INFO", `STREAM.INFO.${streams.DLQ.name}`),
    ...streams.SPANS.subjects,
    ...(of.audits === true ? streams.AUDIT.subjects : []),
    ...[...events].map((event) => filterFor(event)),
    ...(of.readsHistory ?? []).flatMap(({ name }) => readStream(name)),
    ...(of.consumes ?? []).flatMap(({ durable, stream: { name } }) => [
      ...api(`CONSUMER.INFO.${name}.${durable}`, `CONSUMER.MSG.NEXT.${name}.${durable}`),
      `$JS.ACK.${name}.${durable}.>`,
      deadLetterSubject({ stream: name, durable, tenant: "*", seq: "*" }),
      `$KV.${buckets.waited.name}.${durable}.*`,
    ]),
    ...[...(of.reads ?? []), ...(of.consumes === undefined ? [] : [buckets.waited])].flatMap(({ name }) => readStream(`KV_${name}`)),
    ...(of.writes ?? []).map(({ name }) => `$KV.${name}.>`),
    // A tenant's oldest failed messages go when there are too many of them.
    ...(of.consumes === undefined ? [] : api(`STREAM.PURGE.${streams.DLQ.name}`)),
    ...(of.writes ?? []).filter(({ holdsTexts }) => holdsTexts).flatMap(({ name }) => api(`STREAM.MSG.DELETE.KV_${name}`)),
    ...(of.erases?.streams ?? []).flatMap(({ name }) => [...readStream(name), ...api(`STREAM.MSG.DELETE.${name}`)]),
    ...(of.erases?.buckets ?? []).flatMap(({ name }) =>
      api(`STREAM.INFO.KV_${name}`, `STREAM.MSG.GET.KV_${name}`, `STREAM.MSG.DELETE.KV_${name}`),
    ),
    ...(of.observes ?? []).flatMap(({ durable, stream: { name } }) => api(`STREAM.INFO.${name}`, `CONSUMER.INFO.${name}.${durable}`)),
    ...(of.clears ?? []).flatMap(({ name }) => api(`STREAM.PURGE.KV_${name}`)),
    ...(of.objects === undefined
      ? []
      : api("STREAM.INFO.OBJ_objects", "STREAM.MSG.GET.OBJ_objects", "DIRECT.GET.OBJ_objects", "DIRECT.GET.OBJ_objects.>")),
    // What comes and goes is counted.
    ...(of.objects === "write" || of.objects === "delete" ? [storedSubject({ tenant: "*", kind: "*" })] : []),
    ...(of.readsStored === true ? readStream(streams.STORED.name) : []),
    // The pieces of failed uploads and of deleted objects are erased.
    ...(of.objects === "write" || of.objects === "delete" ? api("STREAM.MSG.DELETE.OBJ_objects") : []),
    // Only the collector lists objects.
    ...(of.objects === "delete" ? readStream("OBJ_objects") : []),
    ...(of.objects === "write" ? ["$O.objects.>"] : []),
    // An object is deleted by writing a mark on its meta subject; its pieces are on another subject.
    ...(of.objects === "delete" ? ["$O.objects.M.>"] : []),
    ...(of.deadLetters === undefined ? [] : api("STREAM.MSG.GET.DLQ")),
    ...(of.deadLetters === "redrive" ? [...readStream("DLQ"), ...api("STREAM.MSG.DELETE.DLQ")] : []),
  ];
  return { publish: { allow: eachOnce(publish) }, subscribe: { allow: [`${inboxPrefixOf(user)}.>`] } };
}

/**
 * A tenant's own client: may give commands for its tenant and follow its new events. It may read neither history nor objects, because
 * NATS cannot separate these by tenant; the gateway shows them instead. Its commands arrive at the door: `loraline.` at the beginning of a
 * subject becomes `door.`. `{tenant}` stands for the tenant's name.
 */
const tenant: NatsPermissions = {
  publish: { allow: byteOrder(tenantCommands.map((event) => filterFor(event, { tenant: "{tenant}" }))) },
  subscribe: { allow: ["_INBOX_tenant_{tenant}.>", "loraline.{tenant}.>"] },
};

/** What the gateway may do besides for each tenant that has a client: take what it says at the door. `{tenant}` stands for the name. */
const atDoor = ({ durable, stream: { name }, events }: ConsumerDef): string[] => [
  ...api(
    `STREAM.INFO.${name}`,
    `STREAM.MSG.GET.${name}`,
    `CONSUMER.INFO.${name}.${durable}`,
    `CONSUMER.MSG.NEXT.${name}.${durable}`,
    `STREAM.MSG.DELETE.${name}`,
  ),
  `$JS.ACK.${name}.${durable}.>`,
  deadLetterSubject({ stream: name, durable, tenant: "{tenant}", seq: "*" }),
  // What could not be taken may be tried again.
  ...events.map((event) => doorFilter(event, "{tenant}")),
];

/** The user of the Job that makes streams, consumers, buckets and the object store, and of backups, which acknowledge each part. */
const streamsUser: NatsPermissions = {
  publish: { allow: ["$JS.API.>", "$JS.SNAPSHOT.>"] },
  subscribe: { allow: ["_INBOX.>", `${inboxPrefixOf("streams")}.>`] },
};

export const natsPermissions: {
  /** Each in a NATS account of its own. */
  services: Record<string, NatsPermissions>;
  /** The same; `{tenant}` stands for the name. */
  tenant: NatsPermissions;
  /** What services may say besides, for each tenant that has a client; `{tenant}` stands for its name. */
  perTenant: Record<string, string[]>;
  /** In the account of the streams. */
  managers: Record<string, NatsPermissions>;
  /** Requests of which each has many answers: between accounts the server has to know. */
  manyAnswers: string[];
} = {
  services: Object.fromEntries(Object.entries<Needs>(needs).map(([user, of]) => [user, permissionsOf(user, of)])),
  tenant,
  perTenant: { gateway: byteOrder(atDoor(doorConsumer("{tenant}"))) },
  managers: { streams: streamsUser },
  manyAnswers: byteOrder(
    Object.entries<Needs>(needs)
      .flatMap(([user, of]) => permissionsOf(user, of).publish.allow)
      .concat(atDoor(doorConsumer("{tenant}")))
      .filter((subject) => /^\$JS\.API\.(CONSUMER\.MSG\.NEXT\..+|DIRECT\.GET\.[^.]+)$/.test(subject)),
  ),
};
