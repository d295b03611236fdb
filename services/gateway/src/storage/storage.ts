/** `GET /v1/loraline/storage`: what a tenant has in the object store, by what it belongs to, beside its quota. */
import type { StoredBytes } from "@loraline/bus";
import { type BlobKind, blobKinds, type StorageGroup, storageGroupOf, type storageView } from "@loraline/contracts";
import type { FastifyInstance } from "fastify";
import type { z } from "zod";
import type { GatewayContext } from "../context.ts";

export function storageRoutes({ bus, quotas }: GatewayContext): (app: FastifyInstance) => void {
  return (app) => {
    app.get("/loraline/storage", async (request): Promise<z.output<typeof storageView>> => {
      const { tenant } = request.caller;
      const stored = await bus.stored(tenant);
      const groups = groupsOf(stored);
      return { tenant, bytes: groups.reduce((sum, { bytes }) => sum + bytes, 0), quota: quotas.of(tenant).storageBytes, groups };
    });
  };
}

function groupsOf(stored: StoredBytes): { group: StorageGroup; bytes: number }[] {
  const byGroup = Map.groupBy(blobKinds, (kind: BlobKind) => storageGroupOf(kind));
  return [...byGroup].map(([group, kinds]) => ({ group, bytes: kinds.reduce((sum, kind) => sum + (stored.get(kind) ?? 0), 0) }));
}
