/** Streams, durable consumers and KV buckets, with their policies. Applied by `ensureStreams`; never deleted by code. */
import { z } from "zod";
import { type EventDef, filterFor } from "./define-event.ts";
import { apiKeyRecord } from "../api-key.ts";
import { engineRecord } from "../engine.ts";
import { datasetEvents, events, runEvents } from "./events.ts";
import type { BlobKind } from "../names.ts";
import { uploadKnownMs, uploadState } from "../http/upload-state.ts";
import { sessionLastsMs, sessionState } from "../http/session.ts";
import { responsesKeptMs, storedResponse } from "../http/stored-response.ts";
import {
  adapterState,
  assignment,
  budgetState,
  cacheEntry,
  datasetState,
  deletionState,
  leaseState,
  limitState,
  replicaHolding,
  replicaReport,
  runState,
  trafficState,
  usageState,
  waitedState,
  trainingUse,
} from "../state.ts";

const day = 24 * 60 * 60 * 1000;
const all: readonly EventDef[] = Object.values(events);

export interface StreamDef {
  readonly name: string;
  readonly subjects: readonly string[];
  readonly description: string;
  /** How long a message is kept. 0: for ever, because state can be rebuilt from the stream. */
  readonly maxAgeMs: number;
  /** How long a second message with the same id is dropped. */
  readonly dedupeMs: number;
  /** Its size at most, where `ensureStreams` is told no other. Absent: no limit. */
  readonly maxBytes?: number;
  /** At that size further messages are refused (STORE_FULL), because to lose old ones is to lose what a tenant has. Absent: the oldest are removed. */
  readonly refusesWhenFull?: true;
  /** Subjects under which messages are stored, where these are others. */
  readonly storedAs?: { readonly from: string; readonly to: string };
  /** Most messages in it. Absent: no limit. */
  readonly maxMessages?: number;
  /** Largest message, with its headers. Absent: as large as the server allows. */
  readonly maxMessageBytes?: number;
  /** Each subject is a counter: a message says by how much it changes, and the newest one holds the sum (NATS 2.12). */
  readonly counter?: true;
  /** Most messages of one subject; the oldest of it are removed. Absent: no limit. */
  readonly maxPerSubject?: number;
  /** Messages may say how long they are kept (`lastsMs` of their event). NATS lets nobody take that back. */
  readonly mayExpire?: true;
  /** Nobody can delete a message or purge the stream. NATS lets nobody take that back. */
  readonly appendOnly?: true;
  /** What is stored is said once more where tenants' own clients hear it (`toldSubject`). */
  readonly tellsTenants?: true;
  /** The stream is a queue: a message is removed once it is processed. Absent: the stream is a history. */
  readonly queue?: true;
}

const subjectsOf = (pick: (event: EventDef) => boolean): string[] => all.filter(pick).map((event) => filterFor(event));

/** What somebody asks for by chatting with it. */
const wishes = [events.adapterVersionWanted, events.adapterCheckpointWanted];
const isWish = (event: EventDef): boolean => (wishes as readonly EventDef[]).includes(event);

export const streams = {
  DATASETS: {
    name: "DATASETS",
    tellsTenants: true,
    description: "History of every dataset",
    subjects: datasetEvents.map((event) => filterFor(event)),
    maxAgeMs: 0,
    dedupeMs: 10 * 60_000,
    refusesWhenFull: true,
    mayExpire: true,
  },
  RUNS: {
    name: "RUNS",
    tellsTenants: true,
    description: "History of every run, without progress",
    subjects: runEvents.map((event) => filterFor(event)),
    maxAgeMs: 0,
    dedupeMs: 10 * 60_000,
    refusesWhenFull: true,
  },
  PROGRESS: {
    name: "PROGRESS",
    tellsTenants: true,
    description: "How far work is, such as training steps, and commands that change nothing; short-lived",
    subjects: [
      filterFor(events.runProgress),
      filterFor(events.datasetProgress),
      filterFor(events.runCommandRefused),
      filterFor(events.adapterCommandRefused),
    ],
    maxAgeMs: 7 * day,
    dedupeMs: 10 * 60_000,
  },
  CHUNKS: {
    name: "CHUNKS",
    description: "Parts of runs that wait to be tokenized",
    subjects: subjectsOf((event) => event.noun === "chunk"),
    maxAgeMs: day,
    dedupeMs: 10 * 60_000,
    refusesWhenFull: true,
    queue: true,
  },
  ADAPTERS: {
    name: "ADAPTERS",
    tellsTenants: true,
    description: "History of every adapter",
    subjects: subjectsOf((event) => event.noun === "adapter" && !isWish(event) && event !== events.adapterCommandRefused),
    maxAgeMs: 0,
    dedupeMs: 10 * 60_000,
    refusesWhenFull: true,
  },
  WANTED: {
    name: "WANTED",
    description: "Versions and checkpoints that somebody asked for by name; short-lived",
    subjects: wishes.map((event) => filterFor(event)),
    maxAgeMs: 60 * 60_000,
    dedupeMs: 60_000,
    maxBytes: 64 * 1024 ** 2,
    queue: true,
  },
  DLQ: {
    name: "DLQ",
    description: "Dead letters: dlq.<stream>.<durable>.<tenant>.<seq>",
    subjects: ["dlq.>"],
    maxAgeMs: 30 * day,
    dedupeMs: 10 * 60_000,
    // A tenant's client can cause any number of failed messages. Those of one tenant are limited where they are written (`buryLetter`).
    maxBytes: 1024 ** 3,
  },
  STORED: {
    name: "STORED",
    description: "Bytes in the object store: stored.<tenant>.<kind>, a counter",
    subjects: ["stored.*.*"],
    maxAgeMs: 0,
    dedupeMs: 10_000,
    counter: true,
  },
  AUDIT: {
    name: "AUDIT",
    description: "Who did what: audit.<tenant>, and audit.<tenant>.everyday for what programs do all day",
    subjects: ["audit.*", "audit.*.everyday"],
    // What `ensureStreams` is told counts instead.
    maxAgeMs: 400 * day,
    dedupeMs: 60 * 60_000,
    // Subjects of each tenant, so that whoever writes many entries makes only its own old ones go. Of those that say who may do what, none goes
    // before its time: the quota adminActionsPerDay lets in 250 a day, and each key can be revoked once.
    maxPerSubject: 200_000,
    appendOnly: true,
  },
  SPANS: {
    name: "SPANS",
    description: "Traces, where they are kept on NATS: spans.<traceId>, a JSON list of spans",
    subjects: ["spans.*"],
    maxAgeMs: 7 * day,
    dedupeMs: 10_000,
    maxBytes: 128 * 1024 ** 2,
  },
} as const satisfies Record<string, StreamDef>;

interface DeadLetterAddress {
  stream: string;
  durable: string;
  tenant: string;
  seq: number | string;
}

/** Subject of a failed message's copy in DLQ: names the stream and sequence of the message, the consumer that failed, and whose it is. */
export const deadLetterSubject = ({ stream, durable, tenant, seq }: DeadLetterAddress): string =>
  `dlq.${stream}.${durable}.${tenant}.${seq}`;
export const parseDeadLetterSubject = (subject: string): { stream: string; durable: string } => {
  const [, stream = "", durable = ""] = subject.split(".");
  return { stream, durable };
};

export const storedSubject = ({ tenant, kind }: { tenant: string; kind: BlobKind | "*" }): string => `stored.${tenant}.${kind}`;
export const parseStoredSubject = (subject: string): { tenant: string; kind: BlobKind } => {
  const [, tenant = "", kind = ""] = subject.split(".");
  return { tenant, kind: kind as BlobKind };
};

export const spansSubject = (traceId: string): string => `spans.${traceId}`;

export const streamOf = (event: EventDef): StreamDef => {
  const found = Object.values(streams).find((stream) => (stream.subjects as readonly string[]).includes(filterFor(event)));
  if (found === undefined) throw new Error(`no stream takes ${event.type}`);
  return found;
};

export interface ConsumerDef {
  /** `<service>-<event>`. */
  readonly durable: string;
  readonly stream: StreamDef;
  readonly events: readonly EventDef[];
  /** After this long without a heartbeat the message is delivered again. Heartbeats are sent three times as often. */
  readonly ackWaitMs: number;
  /** After this many deliveries a message that fails with an unknown error becomes a failed message. */
  readonly maxDeliver: number;
  /** Messages that one process works on at the same time. */
  readonly concurrency: number;
  /** Messages that all processes together have in hand, also those that wait to be tried again. */
  readonly maxAckPending: number;
  /**
   * A process handles the events of one entity in the stream's order; while one is tried again, those behind it wait, and other entities'
   * go on. Between processes there is no order: handlers see by `seq` what is older than what was done already. Absent: no order at all.
   */
  readonly ordered?: true;
  /**
   * Messages that one process takes in hand before it can work on them, to work on those of all tenants in turns. Absent: none, they are
   * worked on as they come. Other processes cannot have them meanwhile.
   */
  readonly ahead?: number;
}

export const consumers = {
  ingestDatasetReceived: {
    durable: "ingest-dataset-received",
    stream: streams.DATASETS,
    events: [events.datasetReceived],
    ackWaitMs: 15_000,
    maxDeliver: 6,
    concurrency: 2,
    maxAckPending: 10_000,
    ahead: 200,
  },
  ingestDatasetImportRequested: {
    durable: "ingest-dataset-import-requested",
    stream: streams.DATASETS,
    events: [events.datasetImportRequested],
    ackWaitMs: 15_000,
    maxDeliver: 6,
    // Most of them wait for other servers, or for a place: import-slots.ts says how many are under way.
    concurrency: 32,
    maxAckPending: 10_000,
  },
  tokenizeRunRequested: {
    durable: "tokenize-run-requested",
    stream: streams.RUNS,
    events: [events.runRequested],
    ackWaitMs: 15_000,
    maxDeliver: 6,
    concurrency: 8,
    maxAckPending: 10_000,
    // As many as a tenant may have waiting (quota runsWaiting): the work itself is asked for in chunks, which any process may have.
    ahead: 1000,
  },
  tokenizeChunkRequested: {
    durable: "tokenize-chunk-requested",
    stream: streams.CHUNKS,
    events: [events.chunkRequested],
    // Short, so that another replica soon takes over the work of a dead one; a chunk takes only a second or two.
    ackWaitMs: 5_000,
    maxDeliver: 6,
    concurrency: 2,
    maxAckPending: 10_000,
    ahead: 8,
  },
  serveRunTrained: {
    durable: "serve-run-trained",
    stream: streams.RUNS,
    events: [events.runTrained],
    ackWaitMs: 15_000,
    maxDeliver: 6,
    concurrency: 1,
    maxAckPending: 256,
    ordered: true,
  },
  serveRunIncoming: {
    durable: "serve-run-incoming",
    stream: streams.RUNS,
    // The first says what may be loaded ahead of its gate, the others that it will not come.
    events: [events.runAdapterWritten, events.runAttemptEnded, events.runFailed, events.runCancelled],
    ackWaitMs: 15_000,
    maxDeliver: 6,
    concurrency: 1,
    maxAckPending: 256,
    ordered: true,
  },
  serveRunCancelRequested: {
    durable: "serve-run-cancel-requested",
    stream: streams.RUNS,
    events: [events.runCancelRequested],
    ackWaitMs: 15_000,
    maxDeliver: 6,
    concurrency: 1,
    maxAckPending: 256,
    ordered: true,
  },
  serveAdapterCommands: {
    durable: "serve-adapter-commands",
    stream: streams.ADAPTERS,
    events: [
      events.adapterPromoteRequested,
      events.adapterRollbackRequested,
      events.adapterPlaceRequested,
      events.adapterKeepRequested,
      events.adapterVersionDeleteRequested,
      events.adapterDeleteRequested,
    ],
    ackWaitMs: 15_000,
    maxDeliver: 6,
    concurrency: 1,
    maxAckPending: 256,
    ordered: true,
  },
  serveVersionWanted: {
    durable: "serve-version-wanted",
    stream: streams.WANTED,
    events: wishes,
    ackWaitMs: 15_000,
    maxDeliver: 6,
    concurrency: 8,
    maxAckPending: 10_000,
  },
  projectorDatasets: {
    durable: "projector-datasets",
    stream: streams.DATASETS,
    events: datasetEvents,
    ackWaitMs: 15_000,
    maxDeliver: 5,
    concurrency: 4,
    maxAckPending: 256,
    ahead: 200,
    ordered: true,
  },
  projectorRuns: {
    durable: "projector-runs",
    stream: streams.RUNS,
    events: runEvents,
    ackWaitMs: 15_000,
    maxDeliver: 5,
    concurrency: 4,
    maxAckPending: 256,
    ahead: 200,
    ordered: true,
  },
  projectorProgress: {
    durable: "projector-progress",
    stream: streams.PROGRESS,
    events: [events.runProgress, events.datasetProgress],
    ackWaitMs: 15_000,
    maxDeliver: 3,
    concurrency: 4,
    maxAckPending: 256,
    ahead: 200,
    ordered: true,
  },
} as const satisfies Record<string, ConsumerDef>;

export interface BucketDef<T extends z.ZodType = z.ZodType> {
  readonly name: string;
  readonly description: string;
  readonly value: T;
  /** How long an entry is kept. 0: for ever. */
  readonly ttlMs: number;
  /** Values may hold texts of users: one that is replaced is erased from the server's disk, where it would otherwise stay for long. */
  readonly holdsTexts?: true;
  /** At its size the oldest entries go: they are a convenience, and whoever comes next has the same right. Absent: what is new is refused. */
  readonly dropsOldest?: true;
}

export const buckets = {
  runs: { name: "runs", description: "Fold of run events; key <tenant>.<runId>", value: runState, ttlMs: 0, holdsTexts: true },
  datasets: {
    name: "datasets",
    description: "Fold of dataset events; key <tenant>.<datasetId>",
    value: datasetState,
    ttlMs: 0,
    holdsTexts: true,
  },
  adapters: {
    name: "adapters",
    description: "Desired versions and aliases; written by serve only; key <tenant>.<adapter>",
    value: adapterState,
    ttlMs: 0,
  },
  replicas: { name: "replicas", description: "Heartbeat of each agent; key <engine>.<replica>", value: replicaReport, ttlMs: 15_000 },
  holdings: {
    name: "holdings",
    description: "What each replica holds of each adapter, proven or not; key <engine>.<replica>.<tenant>.<adapter>",
    value: replicaHolding,
    ttlMs: 0,
  },
  assignments: {
    name: "assignments",
    description: "Which versions which replicas should hold; key <engine>.<replica, or - for every one>.<tenant>.<adapter>",
    value: assignment,
    ttlMs: 0,
  },
  engines: { name: "engines", description: "What each engine can serve; key <engine>", value: engineRecord, ttlMs: 0 },
  waited: {
    name: "waited",
    description: "Messages that were put off; key <durable>.<sequence>",
    value: waitedState,
    ttlMs: 7 * day,
  },
  cache: { name: "cache", description: "Content-addressed results; key <stage>.<tenant>.<hex>", value: cacheEntry, ttlMs: 0 },
  traffic: {
    name: "traffic",
    description:
      "What each gateway tells of its requests; keys <gateway> (in flight where no more should come; at least every 5 s), <gateway>.canary, <gateway>.asked, <gateway>.demand",
    value: trafficState,
    ttlMs: 15_000,
  },
  limits: {
    name: "limits",
    description: "Limits on requests; written by the gateway for its tenants' admins; key <tenant> or <tenant>.<adapter>",
    value: limitState,
    ttlMs: 0,
  },
  training: {
    name: "training",
    description: "What the runs of each tenant hold; written by train; key <tenant>",
    value: trainingUse,
    ttlMs: 0,
  },
  budgets: {
    name: "budgets",
    description: "What gateways have taken of each limit; key as in limits, and <tenant>.-.uploads (bytes, in `tokens`)",
    value: budgetState,
    ttlMs: 3 * 60_000,
  },
  usage: {
    name: "usage",
    description: "Tokens used; key <tenant>.<day>.<adapter, or - for bases>.<gateway>, and ….total of days that are over",
    value: usageState,
    // A year, and a month to look back at it.
    ttlMs: 400 * day,
  },
  responses: {
    name: "responses",
    description: "Answers of /v1/responses with their conversations; key <tenant>.<ulid>",
    value: storedResponse,
    ttlMs: responsesKeptMs,
    holdsTexts: true,
    dropsOldest: true,
  },
  uploads: {
    name: "uploads",
    description: "Files that come in parts; key <tenant>.<ulid>",
    value: uploadState,
    ttlMs: uploadKnownMs,
    holdsTexts: true,
  },
  deletions: {
    name: "deletions",
    description: "What is to be deleted for good, and when that was done; key <tenant>.<what>.<id>",
    value: deletionState,
    ttlMs: 90 * day,
  },
  leases: { name: "leases", description: "Work that one process does at a time; key = the work", value: leaseState, ttlMs: 30_000 },
  sessions: {
    name: "sessions",
    description: "Browsers that are signed in, and links that sign one in; key = <tenant>.<sha256 of the cookie or link, hex>",
    value: sessionState,
    ttlMs: sessionLastsMs,
  },
  keys: { name: "keys", description: "API keys; key = sha256 of the key, hex", value: apiKeyRecord, ttlMs: 0 },
} as const satisfies Record<string, BucketDef>;

const bucketNames = Object.keys(buckets) as (keyof typeof buckets)[];
const boundedStreams = [
  "RUNS",
  "DATASETS",
  "ADAPTERS",
  "PROGRESS",
  "CHUNKS",
  "DLQ",
  "SPANS",
  "WANTED",
] as const satisfies (keyof typeof streams)[];

/**
 * Sizes of streams and of KV buckets, which are streams, too, in bytes, as an installation sets them: STREAM_LIMITS (JSON). AUDIT and STORED
 * are bounded by the number of their messages. A bucket that is full refuses what is new, also new values of what is there.
 */
export const streamLimits = z.partialRecord(
  z.enum([...boundedStreams, ...bucketNames.map((name): `KV_${keyof typeof buckets}` => `KV_${name}`)]),
  z.int().min(1024 ** 2),
);
export type StreamLimits = z.infer<typeof streamLimits>;
