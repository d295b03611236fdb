/**
 * Reads what NATS holds at the end of a soak, with NATS' own client: an error of Loraline's libraries must not hide what they did. Blobs come
 * by its library, and are compared with their digests here.
 */
import { createHash } from "node:crypto";
import { DeliverPolicy, jetstream, jetstreamManager } from "@nats-io/jetstream";
import type { BlobKind, Digest } from "@loraline/contracts";
import { createJetStreamObjects, getBytes } from "@loraline/objects";
import type { NatsConnection } from "@nats-io/transport-node";
import type { Move, Stored, StoredEvent, UsageCount } from "./history.ts";

const decode = (bytes: Uint8Array): unknown => {
  try {
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    return null;
  }
};

/** All messages of a stream, or the last of each subject. */
async function messagesOf(nc: NatsConnection, stream: string, lastOnly = false): Promise<(StoredEvent & { deleted: boolean })[]> {
  const { state } = await (await jetstreamManager(nc)).streams.info(stream);
  if (state.messages === 0) return [];
  const consumer = await jetstream(nc).consumers.get(stream, {
    deliver_policy: lastOnly ? DeliverPolicy.LastPerSubject : DeliverPolicy.All,
  });
  const found: (StoredEvent & { deleted: boolean })[] = [];
  try {
    for (let pending = (await consumer.info()).num_pending; pending > 0; pending = (await consumer.info()).num_pending) {
      for await (const message of await consumer.fetch({ max_messages: Math.min(pending, 1000), expires: 5000 })) {
        const { subject, seq, data, headers, info } = message;
        const deleted = Boolean(headers?.get("KV-Operation"));
        found.push({ seq, subject, time: Number(info.timestampNanos / 1_000_000), data: decode(data), deleted });
        if (info.pending === 0) break;
      }
    }
  } finally {
    await consumer.delete();
  }
  return found;
}

/** The values of a bucket by key. */
async function valuesOf(nc: NatsConnection, bucket: string): Promise<[string, unknown][]> {
  const entries = await messagesOf(nc, `KV_${bucket}`, true);
  // A test may have written bytes that are no entry.
  return entries.flatMap(({ subject, data, deleted }) =>
    deleted || data === null ? [] : [[subject.slice(`$KV.${bucket}.`.length), data]],
  );
}

interface AdapterEntry {
  adapter: string;
  alias: number | null;
  history: { n?: number; kind: string; to: number; command?: number | null }[];
  versions: { version: number; digest: string; runId: string; status: string }[];
}

export const movesOf = (history: AdapterEntry["history"]): Move[] =>
  history.map(({ n, kind, to, command }, index) => ({ n: n ?? index + 1, kind, to, command: command ?? null }));

interface UsageEntry {
  rows: (UsageCount & Record<string, unknown>)[];
}
const countsOf = ({ rows }: UsageEntry): UsageCount[] =>
  rows.map(({ model, requests, promptTokens, completionTokens }) => ({ model, requests, promptTokens, completionTokens }));

export const readUsage = async (nc: NatsConnection): Promise<[string, UsageCount[]][]> =>
  (await valuesOf(nc, "usage")).map(([key, value]) => [key, countsOf(value as UsageEntry)]);

export async function readStored(nc: NatsConnection, tenant: string): Promise<Stored> {
  const streams: Stored["streams"] = {};
  for (const stream of ["DATASETS", "RUNS", "ADAPTERS", "DLQ"]) {
    streams[stream] = (await messagesOf(nc, stream)).map(({ seq, subject, time, data }) => ({ seq, subject, time, data }));
  }
  const adapters: Stored["adapters"] = {};
  const files: Stored["files"] = {};
  const store = await createJetStreamObjects(nc);
  const blob = async (kind: BlobKind, digest: string): Promise<Buffer> => {
    const bytes = Buffer.from(await getBytes(store, tenant, { kind, digest: digest as Digest }));
    const actual = `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
    if (actual !== digest) throw new Error(`the ${kind} ${digest} is ${actual}`);
    return bytes;
  };
  for (const [, value] of await valuesOf(nc, "adapters")) {
    const { adapter, alias, history, versions } = value as AdapterEntry;
    const short = versions.map(({ version, digest, runId, status }) => ({ version, digest, runId, status }));
    adapters[adapter] = { alias, moves: movesOf(history), versions: short };
    for (const { digest } of short) {
      if (files[digest] !== undefined) continue;
      const manifest = JSON.parse((await blob("adapter", digest)).toString()) as { files: { path: string; blob: { digest: string } }[] };
      const file = async (path: string): Promise<string> =>
        (await blob("adapter-file", manifest.files.find((known) => known.path === path)?.blob.digest ?? "")).toString("base64");
      files[digest] = { config: await file("adapter_config.json"), weights: await file("adapter_model.safetensors") };
    }
  }
  return { streams, adapters, files, usage: Object.fromEntries(await readUsage(nc)) };
}
