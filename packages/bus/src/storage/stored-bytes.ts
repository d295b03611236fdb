/** What tenants have in the object store, as whoever stores and removes blobs has counted it (`countStored` of @loraline/objects). */
import { type BlobKind, parseStoredSubject, storedSubject, streams } from "@loraline/contracts";
import { jetstream, jetstreamManager } from "@nats-io/jetstream";
import type { NatsConnection } from "@nats-io/transport-node";

/** Bytes by kind of blob. */
export type StoredBytes = ReadonlyMap<BlobKind, number>;

export const sumOf = (stored: StoredBytes): number => stored.values().reduce((sum, bytes) => sum + bytes, 0);

/** One request, however much there is. */
export async function readStored(nc: NatsConnection, tenant: string): Promise<StoredBytes> {
  const { direct } = await jetstreamManager(nc, { checkAPI: false });
  const stored = new Map<BlobKind, number>();
  try {
    const newest = await direct.getLastMessagesFor(streams.STORED.name, { multi_last: [storedSubject({ tenant, kind: "*" })] });
    for await (const { subject, data } of newest) stored.set(parseStoredSubject(subject).kind, valueOf(data));
  } catch (error) {
    if (!/no messages|no results|message not found|404/i.test((error as Error).message)) throw error;
  }
  return stored;
}

/** Of all tenants: one pass over the counters. */
export async function readStoredOfAll(nc: NatsConnection): Promise<Map<string, Map<BlobKind, number>>> {
  const consumer = await jetstream(nc).consumers.get(streams.STORED.name, {});
  const all = new Map<string, Map<BlobKind, number>>();
  try {
    for (let left = (await consumer.info()).num_pending; left > 0; left = (await consumer.info()).num_pending) {
      for await (const { subject, data, info } of await consumer.fetch({ max_messages: Math.min(left, 1000), expires: 5000 })) {
        const { tenant, kind } = parseStoredSubject(subject);
        all.set(tenant, (all.get(tenant) ?? new Map<BlobKind, number>()).set(kind, valueOf(data)));
        if (info.pending === 0) break;
      }
    }
  } finally {
    await consumer.delete().catch(() => false);
  }
  return all;
}

// Below zero when a count is missing; the collector corrects that.
const valueOf = (data: Uint8Array): number => Math.max(0, Number((JSON.parse(new TextDecoder().decode(data)) as { val: string }).val));
