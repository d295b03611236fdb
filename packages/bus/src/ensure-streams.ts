/** Creates or updates every stream, consumer and bucket. Idempotent; never deletes. */
import { createHash } from "node:crypto";
import {
  type BucketDef,
  buckets,
  type ConsumerDef,
  consumers,
  doorConsumer,
  doorStream,
  filterFor,
  streams,
  type StreamDef,
  type StreamLimits,
  toldSubject,
} from "@loraline/contracts";
import {
  AckPolicy,
  DeliverPolicy,
  DiscardPolicy,
  JetStreamApiCodes,
  JetStreamApiError,
  jetstreamManager,
  RetentionPolicy,
  StorageType,
} from "@nats-io/jetstream";
import { Kvm } from "@nats-io/kv";
import { natsFull } from "@loraline/runtime";
import { type NatsConnection, nanos } from "@nats-io/transport-node";

const everyEvent = "loraline.>";

/** Every replica's agent and every gateway watches some buckets; a server of 2.15 allows a thousand unless told otherwise. */
const watchersAtMost = 100_000;

/** Of a bucket whose replaced values are erased: so many writers may be about to do that. */
const replacedValuesKept = 8;

export interface EnsureStreamsOptions {
  /** Copies of each stream: 1, or 3 and 5 on a cluster of that size. */
  replicas?: number;
  /** How long entries of the audit log are kept, in days. Default 400. */
  auditDays?: number | undefined;
  /** Sizes of streams and buckets, in bytes. One that holds more already keeps that, and takes no more. Absent: as in `streams`; buckets have no limit. */
  limits?: StreamLimits | undefined;
  /** Tenants whose own clients use NATS: each gets a stream for what they say. That of one that is not named any more stays. */
  tenants?: readonly string[] | undefined;
}

/** @returns `unlimited`: buckets for whose limit NATS has nothing left to set aside, beside the limits of all others. */
export async function ensureStreams(
  nc: NatsConnection,
  { replicas = 1, auditDays, limits = {}, tenants = [] }: EnsureStreamsOptions = {},
): Promise<{ unlimited: string[] }> {
  const jsm = await jetstreamManager(nc);
  // NATS sets aside what streams may have at most. Those that had a limit from the start come first, in case it becomes smaller and makes room.
  const defs = [...Object.values<StreamDef>(streams), ...tenants.map(doorStream)].toSorted(
    (a, b) => Number(a.maxBytes === undefined) - Number(b.maxBytes === undefined),
  );
  for (const def of defs) {
    const maxBytes = (limits as Partial<Record<string, number>>)[def.name] ?? def.maxBytes;
    const config = {
      name: def.name,
      description: def.description,
      subjects: [...def.subjects],
      retention: def.queue === true ? RetentionPolicy.Workqueue : RetentionPolicy.Limits,
      storage: StorageType.File,
      max_age: nanos(def === streams.AUDIT && auditDays !== undefined ? auditDays * 24 * 60 * 60_000 : def.maxAgeMs),
      ...(def.maxPerSubject === undefined ? {} : { max_msgs_per_subject: def.maxPerSubject }),
      ...(def.storedAs === undefined ? {} : { subject_transform: { src: def.storedAs.from, dest: def.storedAs.to } }),
      ...(def.tellsTenants === true ? { republish: { src: everyEvent, dest: toldSubject(everyEvent) } } : {}),
      ...(def.maxMessages === undefined ? {} : { max_msgs: def.maxMessages }),
      ...(def.maxMessageBytes === undefined ? {} : { max_msg_size: def.maxMessageBytes }),
      ...(def.mayExpire === true ? { allow_msg_ttl: true } : {}),
      ...(def.appendOnly === true ? { deny_delete: true, deny_purge: true } : {}),
      // A limit that was set once and is set no more is lifted.
      max_bytes: maxBytes ?? -1,
      discard: def.refusesWhenFull === true ? DiscardPolicy.New : DiscardPolicy.Old,
      duplicate_window: nanos(def.dedupeMs),
      num_replicas: replicas,
      allow_direct: true,
      ...(def.counter === true ? { allow_msg_counter: true, max_msgs_per_subject: 1 } : {}),
    };
    const exists = await jsm.streams.info(def.name).then(
      () => true,
      () => false,
    );
    if (exists) await jsm.streams.update(def.name, config);
    else await jsm.streams.add(config);
  }
  for (const def of [...Object.values<ConsumerDef>(consumers), ...tenants.map(doorConsumer)]) {
    const changeable = {
      // A queue of one consumer: whatever came is taken, so that what is no command is put aside, too. An empty list would not do: a server
      // that was started again has forgotten it, and takes the same consumer for another one.
      ...(def.stream.storedAs === undefined ? { filter_subjects: def.events.map((event) => filterFor(event)) } : {}),
      ack_wait: nanos(def.ackWaitMs),
      max_ack_pending: def.maxAckPending,
      // The limit on deliveries is ours (`consume`), so that a message that reaches it becomes a dead letter first.
      max_deliver: -1,
    };
    const config = { durable_name: def.durable, ack_policy: AckPolicy.Explicit, deliver_policy: DeliverPolicy.All, ...changeable };
    await jsm.consumers.add(def.stream.name, config).catch(async (error: unknown) => {
      // `add` changes nothing: the server refuses it where an earlier version, or a later one, made the consumer of other events.
      if (!/consumer already exists/i.test((error as Error).message)) throw error;
      await jsm.consumers.update(def.stream.name, def.durable, changeable);
    });
  }
  const kvm = new Kvm(nc);
  const unlimited: string[] = [];
  for (const def of Object.values<BucketDef>(buckets)) {
    await kvm.create(def.name, { description: def.description, ttl: def.ttlMs, history: 1, replicas });
    // The client's types say that it cannot be changed; older servers say so too, and have no limit of their own.
    const limit: object = { max_consumers: watchersAtMost };
    await jsm.streams.update(`KV_${def.name}`, limit).catch((error: unknown) => {
      if (!/max ?consumers/i.test((error as Error).message)) throw error;
    });
    // What the server removes by itself is not erased: replaced values stay until their writer has done that.
    const revisions = def.holdsTexts === true ? { max_msgs_per_subject: replacedValuesKept } : {};
    const max_bytes = (limits as Partial<Record<string, number>>)[`KV_${def.name}`] ?? -1;
    const discard = def.dropsOldest === true ? { discard: DiscardPolicy.Old } : {};
    const config = { num_replicas: replicas, max_age: nanos(def.ttlMs), ...revisions, ...discard };
    try {
      await jsm.streams.update(`KV_${def.name}`, { ...config, max_bytes });
    } catch (error) {
      // Limits that an installation chose before buckets had any may have left no room to set aside, and nothing must stop for that.
      if (max_bytes === -1 || natsFull(error) === undefined) throw error;
      await jsm.streams.update(`KV_${def.name}`, { ...config, max_bytes: -1 });
      unlimited.push(def.name);
    }
  }
  // Last, so that a service that sees it finds everything else.
  await jsm.streams.update(streams.DLQ.name, { metadata: { [mark]: markOf() } });
  return { unlimited };
}

/** On the stream DLQ: which definitions were applied here. */
const mark = "loraline-streams";
const markOf = (): string => {
  const shape = {
    streams,
    consumers: Object.values(consumers).map(({ events, ...rest }) => ({ ...rest, events: events.map(({ type }) => type) })),
    buckets: Object.values(buckets).map(({ name, ttlMs }) => ({ name, ttlMs })),
  };
  return createHash("sha256").update(JSON.stringify(shape)).digest("hex").slice(0, 16);
};

/** What is missing of all that this version needs; undefined: nothing. */
export async function streamsInPlace(nc: NatsConnection): Promise<string | undefined> {
  const where = nc.getServer();
  try {
    const { config } = await (await jetstreamManager(nc, { checkAPI: false })).streams.info(streams.DLQ.name);
    if (config.metadata?.[mark] === markOf()) return undefined;
    return `the streams on ${where} are those of another version. Run \`loraline ensure-streams\` of this one against it.`;
  } catch (error) {
    if (error instanceof JetStreamApiError && error.code === JetStreamApiCodes.StreamNotFound) {
      return `there are no streams on ${where}. Run \`loraline ensure-streams\` against it.`;
    }
    return `the streams on ${where} cannot be read: ${(error as Error).message}`;
  }
}
