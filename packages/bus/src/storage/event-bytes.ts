/** How many bytes streams keep of a tenant's events: of its runs, datasets and adapters, for as long as these are not deleted. */
import { streams, tenantName } from "@loraline/contracts";
import { DeliverPolicy, jetstream } from "@nats-io/jetstream";
import type { NatsConnection } from "@nats-io/transport-node";
import { headersOf } from "../envelope.ts";

const kept = [streams.RUNS, streams.DATASETS, streams.ADAPTERS];
/** What NATS adds to each message. */
const recordBytes = 30;

interface Count {
  bytes: number;
  /** For each stream, the first sequence that is not counted yet. */
  next: Map<string, number>;
}

export type EventBytes = (tenant: string, options?: { anew?: boolean }) => Promise<number>;

/**
 * Each call reads the headers of what came since the last one. What was erased meanwhile goes out of the count when it is taken `anew`.
 */
export function createEventBytes(nc: NatsConnection): EventBytes {
  const counts = new Map<string, Count>();
  const counting = new Map<string, Promise<number>>();
  const countSince = async (stream: string, tenant: string, count: Count): Promise<void> => {
    const from = { deliver_policy: DeliverPolicy.StartSequence, opt_start_seq: count.next.get(stream) ?? 1 };
    const filter = `loraline.${tenantName.parse(tenant)}.>`;
    const consumer = await jetstream(nc).consumers.get(stream, { ...from, filter_subjects: filter, headers_only: true });
    try {
      for (let left = (await consumer.info(true)).num_pending; left > 0;) {
        let read = 0;
        for await (const message of await consumer.fetch({ max_messages: Math.min(left, 1000), expires: 5000 })) {
          read++;
          left = message.info.pending;
          count.next.set(stream, message.seq + 1);
          const headers = headersOf(() => message.headers);
          count.bytes += recordBytes + message.subject.length + (Number(headers?.get("Nats-Msg-Size")) || 0);
          for (const [name, values] of headers ?? []) for (const value of values) count.bytes += name.length + value.length + 4;
          if (left === 0) break;
        }
        // What was there was erased meanwhile.
        if (read === 0) break;
      }
    } finally {
      await consumer.delete().catch(() => false);
    }
  };
  const count = async (tenant: string, anew: boolean): Promise<number> => {
    const counted = (anew ? undefined : counts.get(tenant)) ?? { bytes: 0, next: new Map<string, number>() };
    for (const { name } of kept) await countSince(name, tenant, counted);
    counts.set(tenant, counted);
    return counted.bytes;
  };
  return (tenant, { anew = false } = {}) => {
    const already = counting.get(tenant);
    if (already !== undefined) return already;
    const now = count(tenant, anew).finally(() => counting.delete(tenant));
    counting.set(tenant, now);
    return now;
  };
}
