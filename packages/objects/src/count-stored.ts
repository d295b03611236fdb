/** Counts what tenants have in the store, in the stream STORED: one message for each blob that comes or goes, whoever stores it. */
import { type BlobKind, storedSubject } from "@loraline/contracts";
import { jetstream } from "@nats-io/jetstream";
import { headers, type NatsConnection } from "@nats-io/transport-node";

/** Adds to the counter; negative: what was removed. Never fails: a count that got lost is corrected by the collector. */
export type CountStored = (tenant: string, kind: BlobKind, bytes: number) => Promise<void>;

export function countStored(nc: NatsConnection): CountStored {
  const js = jetstream(nc, { timeout: 2000 });
  return async (tenant, kind, bytes) => {
    if (bytes === 0) return;
    const change = headers();
    change.set("Nats-Incr", bytes > 0 ? `+${bytes}` : String(bytes));
    await js.publish(storedSubject({ tenant, kind }), new Uint8Array(), { headers: change }).catch(() => undefined);
  };
}
