/** What every tenant has in the object store, asked at NATS itself: for whoever runs the server. */
import { connectBus, type NatsAuth, readStoredOfAll, sumOf } from "@loraline/bus";
import { type StorageGroup, storageGroupOf } from "@loraline/contracts";

interface TenantStorage {
  tenant: string;
  bytes: number;
  groups: Partial<Record<StorageGroup, number>>;
}

/** @returns the tenant with most first. */
export async function storageOfTenants({ natsUrl, auth }: { natsUrl: string; auth: NatsAuth }): Promise<TenantStorage[]> {
  const nc = await connectBus({ servers: natsUrl, name: "loraline storage", ...auth });
  try {
    return [...(await readStoredOfAll(nc))]
      .map(([tenant, stored]) => {
        const groups: TenantStorage["groups"] = {};
        for (const [kind, bytes] of stored) groups[storageGroupOf(kind)] = (groups[storageGroupOf(kind)] ?? 0) + bytes;
        return { tenant, bytes: sumOf(stored), groups };
      })
      .toSorted((a, b) => b.bytes - a.bytes);
  } finally {
    await nc.close();
  }
}
