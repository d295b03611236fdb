/** Responses that are kept, in KV `responses`: of each tenant the newest up to a number of bytes, for three days. */
import type { Bus } from "@loraline/bus";
import { buckets, everyKeyOf, responseKey, responsesBytesOfTenant, type StoredResponse } from "@loraline/contracts";
import type { Log } from "@loraline/runtime";

/** Most bytes of one: half of what NATS takes by its own default, with room for headers. */
export const storedResponseBytes = 512 * 1024;
/** After so many bytes of a tenant, or so long after the first of them, this gateway looks whether old ones have to go. */
const lookEveryBytes = 4 * 1024 ** 2;
const lookEveryMs = 60_000;

interface Address {
  tenant: string;
  /** ULID. */
  id: string;
}

interface StoredResponses {
  get(address: Address): Promise<StoredResponse | undefined>;
  /** @returns whether it is kept: it is not when it is too large or NATS is away, which must not cost the client its answer. */
  put(address: Address, value: StoredResponse): Promise<boolean>;
  /** Erases its bytes. */
  erase(address: Address): Promise<void>;
}

export async function createStoredResponses({
  bus,
  log,
  bytesOfTenant = responsesBytesOfTenant,
}: {
  bus: Pick<Bus, "bucket">;
  log: Log;
  bytesOfTenant?: number;
}): Promise<StoredResponses> {
  const bucket = await bus.bucket(buckets.responses);
  const written = new Map<string, { bytes: number; since: number }>();

  /** Erases the oldest of a tenant. Several gateways may do it at once: each erases some of the same. */
  const makeRoom = async (tenant: string): Promise<void> => {
    const kept = await bucket.sizes(everyKeyOf(tenant));
    let total = kept.reduce((sum, { bytes }) => sum + bytes, 0);
    if (total <= bytesOfTenant) return;
    for (const { key, bytes } of kept) {
      // Somewhat less than allowed, so that not every response makes the next look necessary.
      if (total <= bytesOfTenant * 0.9) break;
      await bucket.erase(key);
      total -= bytes;
    }
    log.info({ tenant }, "the tenant's oldest responses were erased");
  };

  return {
    get: async (address) => (await bucket.get(responseKey(address)))?.value,
    async put(address, value) {
      const { tenant } = address;
      const bytes = Buffer.byteLength(JSON.stringify(value));
      if (bytes > storedResponseBytes) return false;
      try {
        await bucket.put(responseKey(address), value);
      } catch (error) {
        log.warn({ err: error, tenant }, "a response was answered and not kept");
        return false;
      }
      const so = written.get(tenant) ?? { bytes: 0, since: Date.now() };
      so.bytes += bytes;
      written.set(tenant, so);
      if (so.bytes >= Math.min(lookEveryBytes, bytesOfTenant / 4) || Date.now() - so.since >= lookEveryMs) {
        written.delete(tenant);
        makeRoom(tenant).catch((error: unknown) => log.warn({ err: error, tenant }, "old responses could not be erased"));
      }
      return true;
    },
    erase: (address) => bucket.erase(responseKey(address)),
  };
}
