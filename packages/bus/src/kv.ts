/** Typed KV buckets with compare-and-set. */
import { type BucketDef, problemsOf } from "@loraline/contracts";
import { type Log, natsOutage, PermanentError } from "@loraline/runtime";
import type { z } from "zod";
import { DeliverPolicy, type DirectLastFor, jetstream, jetstreamManager } from "@nats-io/jetstream";
import { Kvm, type KV } from "@nats-io/kv";
import type { MsgHdrs, NatsConnection } from "@nats-io/transport-node";
import { createTurns, readRounds, roundBytes, sizeOf, wholeAnswer } from "./read-rounds.ts";
import { checkStateSize, storeFullOr } from "./sizes.ts";

/** NATS gives the last messages of at most 1,024 subjects for one request. */
const manyAtOnce = 500;

type KvWatch = Awaited<ReturnType<KV["watch"]>>;

interface KvEntry<T> {
  key: string;
  value: T;
  revision: number;
}

interface ReadOptions {
  /**
   * Leaves out, and logs, what does not match the contract, where one bad entry must not keep all others from being read. Default: it
   * throws, since what could not be read is not nothing. A function is called with the key of each that is left out, so that whoever wrote
   * the entry can write it again.
   */
  skipUnreadable?: boolean | ((key: string) => void);
}

export interface KvBucket<T> {
  get(key: string): Promise<KvEntry<T> | undefined>;
  /** Writes whatever was there before. */
  put(key: string, value: T): Promise<number>;
  delete(key: string): Promise<void>;
  /** Removes an entry that nobody watches, its bytes included, and leaves no mark. Only of buckets that hold texts. */
  erase(key: string): Promise<void>;
  /** Keys that match `filter`, or one of several, with the sizes of their entries in bytes, oldest first, without reading the values. */
  sizes(filter: string | string[]): Promise<{ key: string; bytes: number }[]>;
  /** Removes every entry whose key matches `filter` (NATS wildcards) and leaves no markers; watchers are not told. */
  clear(filter: string): Promise<void>;
  /**
   * Compare-and-set until it holds: reads, asks `change`, writes. `change` may run several times; returning undefined
   * leaves the entry as it is.
   */
  change(key: string, change: (current: T | undefined) => T | undefined): Promise<T | undefined>;
  /** All entries whose key matches `filter` (NATS wildcards); no order. */
  entries(filter?: string, options?: ReadOptions): Promise<KvEntry<T>[]>;
  /** Keys that match `filter`, without reading their entries; no order. Those of entries that were deleted may be among them. */
  keys(filter: string): Promise<string[]>;
  /** The entries of these keys, where there are any; no order. */
  many(keys: readonly string[], options?: ReadOptions): Promise<KvEntry<T>[]>;
  /** What the clock of the NATS server shows, in milliseconds since the epoch. */
  serverTime(): Promise<number>;
  /**
   * Calls back with every entry there is, then `onReady`, then with each change; value undefined = deleted.
   * Survives reconnects, and then calls back with what changed meanwhile, or with everything again. Ends with the signal.
   * An entry that expires by its bucket's TTL is not reported: look at its age.
   */
  watch(options: {
    /** NATS wildcards; of several, an entry has to match one. */
    filter?: string | string[];
    signal: AbortSignal;
    onChange(key: string, value: T | undefined, revision: number): void;
    /** An entry that does not match the contract. It is logged, and what was known of the key before may be old. */
    onUnreadable?(key: string): void;
    onReady?(): void;
  }): Promise<void>;
}

export async function openBucket<T extends z.ZodType>(nc: NatsConnection, def: BucketDef<T>, log: Log): Promise<KvBucket<z.output<T>>> {
  type Value = z.output<T>;
  let kv: KV;
  try {
    kv = await new Kvm(nc).open(def.name);
    await kv.status();
  } catch (error) {
    // Not known to be missing.
    if (natsOutage(error) !== undefined) throw error;
    throw new PermanentError(
      "BUCKET_MISSING",
      `KV bucket "${def.name}" is not there: ${(error as Error).message}. Run \`loraline ensure-streams\` against this NATS first.`,
      { cause: error },
    );
  }

  const prefix = `$KV.${def.name}.`;
  const where = `KV bucket ${def.name}`;
  const check = (key: string, value: unknown): Value => {
    const parsed = def.value.safeParse(value);
    if (parsed.success) return parsed.data;
    const problems = problemsOf(parsed.error);
    throw new PermanentError(
      "STATE_INVALID",
      `KV ${def.name}/${key} does not match its contract: ${problems.map((p) => p.message).join("; ")}`,
      { param: problems[0]?.param },
    );
  };
  const parse = (key: string, bytes: Uint8Array): Value => check(key, JSON.parse(new TextDecoder().decode(bytes)));
  const read = (key: string, bytes: Uint8Array, { skipUnreadable = false }: ReadOptions = {}): Value | undefined => {
    try {
      return parse(key, bytes);
    } catch (error) {
      if (skipUnreadable === false) throw error;
      log.error({ err: error, bucket: def.name, key }, "entry skipped");
      if (skipUnreadable !== true) skipUnreadable(key);
      return undefined;
    }
  };
  const encode = (key: string, value: Value): string => {
    const text = JSON.stringify(check(key, value));
    checkStateSize(nc, `${def.name}/${key}`, Buffer.byteLength(text));
    return text;
  };

  const newestOf = (filter: string | string[]) => ({
    filter_subjects: [filter].flat().map((each) => `${prefix}${each}`),
    deliver_policy: DeliverPolicy.LastPerSubject,
  });
  // One pass instead of a read per key, by a consumer that is removed at once: the client library's own `history` leaves it to the server,
  // for minutes, and a stream holds a thousand (nats-server 2.15).
  const reading = { nc, stream: `KV_${def.name}`, log };
  /** Keys that match, those with a marker of a deletion included. */
  const countOf = async (filter: string | string[]): Promise<number> => {
    const consumer = await jetstream(nc).consumers.get(reading.stream, newestOf(filter));
    try {
      return (await consumer.info()).num_pending;
    } finally {
      await consumer.delete().catch((error: unknown) => log.debug({ err: error, bucket: def.name }, "consumer not removed"));
    }
  };
  /** What is replaced is only marked as free by the server, and its bytes would stay in the server's files. */
  const eraseReplaced = (revision: number): void => {
    jetstreamManager(nc, { checkAPI: false })
      .then((jsm) => jsm.streams.deleteMessage(`KV_${def.name}`, revision, true))
      .catch((error: unknown) => log.debug({ err: error, bucket: def.name, revision }, "a replaced value was not erased"));
  };

  /** By key; undefined: it was deleted, or cannot be read. */
  const newestFor = async (keys: readonly string[], options: ReadOptions | undefined): Promise<Map<string, KvEntry<Value> | undefined>> => {
    const { direct } = await jetstreamManager(nc);
    const found = new Map<string, KvEntry<Value> | undefined>();
    const turn = createTurns();
    for (let from = 0; from < keys.length; from += manyAtOnce) {
      const multi_last = keys.slice(from, from + manyAtOnce).map((key) => `${prefix}${key}`);
      // The server ends its answer after so many bytes, also if it is asked for no limit.
      for (let seq = 1, left = true; left;) {
        const of: DirectLastFor & { seq: number } = { multi_last, seq, max_bytes: roundBytes };
        const round = await wholeAnswer(direct.getLastMessagesFor(reading.stream, of), reading.stream);
        for (const message of round) {
          const key = message.subject.slice(prefix.length);
          // A key that changes meanwhile comes twice, and the last one counts.
          const value = isMark(message.header) ? undefined : read(key, message.data, options);
          found.set(key, value === undefined ? undefined : { key, value, revision: message.seq });
          await turn(message.data.byteLength);
        }
        const last = round.at(-1);
        left = last !== undefined && last.pending > 0;
        seq = (last?.seq ?? 0) + 1;
      }
    }
    return found;
  };

  const bucket: KvBucket<Value> = {
    async get(key) {
      const entry = await kv.get(key);
      if (entry === null || entry.operation !== "PUT") return undefined;
      return { key, value: parse(key, entry.value), revision: entry.revision };
    },
    put: async (key, value) =>
      kv.put(key, encode(key, value)).catch((error: unknown) => {
        throw storeFullOr(error, where);
      }),
    delete: (key) => kv.purge(key),
    async erase(key) {
      const entry = await kv.get(key);
      if (entry === null) return;
      const jsm = await jetstreamManager(nc, { checkAPI: false });
      await jsm.streams.deleteMessage(`KV_${def.name}`, entry.revision, true);
    },
    async sizes(filter) {
      const found: { key: string; bytes: number }[] = [];
      const seen = new Set<string>();
      for await (const message of readRounds(reading, { ...newestOf(filter), headers_only: true })) {
        const key = message.subject.slice(prefix.length);
        // One that changes meanwhile comes twice, and may not come at all.
        if (!isMark(message.headers) && !seen.has(key)) found.push({ key, bytes: sizeOf(message) });
        seen.add(key);
      }
      const named = await Promise.all([filter].flat().map(async (one) => (/[*>]/.test(one) ? bucket.keys(one) : [one])));
      for (const key of named.flat()) {
        if (seen.has(key)) continue;
        const entry = await kv.get(key);
        if (entry?.operation === "PUT") found.push({ key, bytes: entry.length });
      }
      return found;
    },
    async clear(filter) {
      const jsm = await jetstreamManager(nc);
      await jsm.streams.purge(`KV_${def.name}`, { filter: `${prefix}${filter}` });
    },
    async change(key, change) {
      for (let attempt = 0; ; attempt++) {
        const raw = await kv.get(key);
        const current = raw === null || raw.operation !== "PUT" ? undefined : parse(key, raw.value);
        const next = change(current);
        if (next === undefined) return current;
        try {
          // A deleted key still has a revision, and its successor must name it.
          await kv.put(key, encode(key, next), { previousSeq: raw?.revision ?? 0 });
          if (def.holdsTexts === true && raw !== null) eraseReplaced(raw.revision);
          return next;
        } catch (error) {
          if (!isWrongRevision(error) || attempt >= 50) throw storeFullOr(error, where);
        }
      }
    },
    async serverTime() {
      // Another question before this one would make the answer's time look older than it is.
      const jsm = await jetstreamManager(nc, { checkAPI: false });
      const { ts } = await jsm.streams.info(`KV_${def.name}`);
      if (ts === undefined) throw new Error("this NATS server is too old: it does not say what its clock shows");
      return Date.parse(ts);
    },
    async keys(filter) {
      const jsm = await jetstreamManager(nc);
      const { state } = await jsm.streams.info(`KV_${def.name}`, { subjects_filter: `${prefix}${filter}` });
      return Object.keys(state.subjects ?? {}).map((subject) => subject.slice(prefix.length));
    },
    many: async (keys, options) => [...(await newestFor(keys, options)).values()].filter((entry) => entry !== undefined),
    async entries(filter = ">", options) {
      // Not by a consumer: what changes while that is read may not come at all (nats-server 2.15 counts what it replaces before what it stores).
      const keys = await bucket.keys(filter);
      const found = await newestFor(keys, options);
      const jsm = await jetstreamManager(nc, { checkAPI: false });
      for (const key of keys) {
        if (found.has(key)) continue;
        // Gone meanwhile; or a replica answered that lags behind the stream's leader, which is asked here.
        const message = await jsm.streams.getMessage(reading.stream, { last_by_subj: `${prefix}${key}` });
        const value = message === null || isMark(message.header) ? undefined : read(key, message.data, options);
        if (message !== null && value !== undefined) found.set(key, { key, value, revision: message.seq });
      }
      return [...found.values()].filter((entry) => entry !== undefined);
    },
    async watch({ filter = ">", signal, onChange, onUnreadable, onReady }) {
      let ready = false;
      const becomeReady = (): void => {
        if (!ready) onReady?.();
        ready = true;
      };
      /** The newest entry that was called back with. */
      let last: { key: string; revision: number; storedAt: number } | undefined;
      const follow = async (iterator: KvWatch): Promise<void> => {
        for await (const entry of iterator) {
          if (signal.aborted) return;
          try {
            const value = entry.operation === "PUT" ? read(entry.key, entry.value, { skipUnreadable: onUnreadable ?? true }) : undefined;
            if (value !== undefined || entry.operation !== "PUT") onChange(entry.key, value, entry.revision);
          } catch (error) {
            log.error({ err: error, bucket: def.name, key: entry.key }, "watch: entry skipped");
          }
          last = { key: entry.key, revision: entry.revision, storedAt: entry.created.getTime() };
          if (entry.delta === 0) becomeReady();
        }
      };
      let current: KvWatch | undefined;
      /** Where to go on: after the last entry, if the bucket still has it. A server that lost its last writes gives their numbers to others. */
      const whereToGoOn = async (): Promise<{ resumeFromRevision?: number }> => {
        if (!ready || last === undefined) return {};
        const entry = await kv.get(last.key, { revision: last.revision });
        return entry?.created.getTime() === last.storedAt ? { resumeFromRevision: last.revision + 1 } : {};
      };
      const start = async (): Promise<KvWatch> => {
        const resume = await whereToGoOn();
        const iterator = await kv.watch({ key: filter, ...resume });
        // Asked after the watch began: a key that is there now is sure to come, one that expired before is not waited for.
        if (!ready && (await countOf(filter)) === 0) becomeReady();
        return iterator;
      };
      const keepFollowing = async (): Promise<void> => {
        while (!signal.aborted && !nc.isClosed()) {
          try {
            current ??= await start();
            await follow(current);
          } catch (error) {
            if (!signal.aborted && !nc.isClosed()) log.warn({ err: error, bucket: def.name }, "watch broke; starting it again");
          }
          current = undefined;
          if (!signal.aborted) await new Promise((resolve) => setTimeout(resolve, 200));
        }
      };
      // A server that restarted has forgotten the watch, and its client would notice only by missing heartbeats.
      const restartOnReconnect = async (): Promise<void> => {
        for await (const status of nc.status()) {
          if (signal.aborted) return;
          if (status.type === "reconnect") current?.stop();
        }
      };
      current = await start();
      signal.addEventListener("abort", () => current?.stop(), { once: true });
      keepFollowing().catch((error: unknown) => log.error({ err: error, bucket: def.name }, "watch ended"));
      restartOnReconnect().catch((error: unknown) => log.error({ err: error, bucket: def.name }, "watch lost sight of the connection"));
    },
  };
  return bucket;
}

/** All of them; none is an answer and no error. */
/** What stands where an entry was deleted, or has expired. */
const isMark = (headers: MsgHdrs | undefined): boolean => Boolean(headers?.get("KV-Operation") || headers?.get("Nats-Marker-Reason"));

const isWrongRevision = (error: unknown): boolean => /wrong last sequence/i.test((error as Error).message);
