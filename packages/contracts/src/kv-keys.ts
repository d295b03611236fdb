/**
 * Keys of the KV buckets; only this file builds and parses them. The parts of a key are joined by dots. No part contains a dot, because
 * tenants, adapters, engines and replicas have names without dots, and ids are ULIDs or hex digits.
 */
import type { EventAddress } from "./events/define-event.ts";
import type { DeletionState } from "./state.ts";

/** Bucket `runs`: `<tenant>.<runId>`. */
export const runKey = ({ tenant, id }: EventAddress): string => `${tenant}.${id}`;
export const parseRunKey = (key: string): EventAddress => {
  const [tenant = "", id = ""] = key.split(".");
  return { tenant, id };
};

/** Bucket `datasets`: `<tenant>.<datasetId>`. */
export const datasetKey = ({ tenant, id }: EventAddress): string => `${tenant}.${id}`;

interface AdapterOfTenant {
  readonly tenant: string;
  readonly adapter: string;
}

/** Bucket `adapters`: `<tenant>.<adapter>`. */
export const adapterKey = ({ tenant, adapter }: AdapterOfTenant): string => `${tenant}.${adapter}`;
export const parseAdapterKey = (key: string): AdapterOfTenant => {
  const [tenant = "", adapter = ""] = key.split(".");
  return { tenant, adapter };
};

/** Matches every entry of one tenant in `runs`, `datasets`, `adapters`, `responses` or `uploads`. */
export const everyKeyOf = (tenant: string): string => `${tenant}.*`;

/** Bucket `replicas`: `<engine>.<replica>`. */
export const replicaKey = ({ engine, replica }: { readonly engine: string; readonly replica: string }): string => `${engine}.${replica}`;
export const parseReplicaKey = (key: string): { engine: string; replica: string } => {
  const [engine = "", replica = ""] = key.split(".");
  return { engine, replica };
};

/** Bucket `holdings`: `<engine>.<replica>.<tenant>.<adapter>`, the key of a replica followed by the key of an adapter. */
export const holdingKey = ({ replicaKey: replica, adapterKey: adapter }: { replicaKey: string; adapterKey: string }): string =>
  `${replica}.${adapter}`;
export const parseHoldingKey = (key: string): { replicaKey: string; adapterKey: string } => {
  const [engine = "", replica = "", tenant = "", adapter = ""] = key.split(".");
  return { replicaKey: replicaKey({ engine, replica }), adapterKey: adapterKey({ tenant, adapter }) };
};
/** Matches the holdings of one replica. */
export const everyHoldingOf = (replica: string): string => `${replica}.>`;

/** Takes the place of the replica in the key of an assignment to every replica. */
const everyReplica = "-";

/**
 * Bucket `assignments`: `<engine>.<replica, or - for every one>.<tenant>.<adapter>`. The entry `<engine>` stands there once those of the
 * engine are complete.
 */
export const assignmentKey = ({ engine, replica, ...adapter }: AdapterOfTenant & { engine: string; replica: string | null }): string =>
  `${engine}.${replica ?? everyReplica}.${adapterKey(adapter)}`;
export const assignmentsComplete = (engine: string): string => engine;
/** @returns the adapter's key; undefined: it is the key `assignmentsComplete`. */
export const parseAssignmentKey = (key: string): { adapterKey: string } | undefined => {
  const [, , tenant, adapter] = key.split(".");
  return tenant === undefined || adapter === undefined ? undefined : { adapterKey: adapterKey({ tenant, adapter }) };
};
/** Match what concerns one replica. */
export const assignmentsTo = ({ engine, replica }: { engine: string; replica: string }): string[] => [
  assignmentsComplete(engine),
  `${engine}.${everyReplica}.>`,
  `${engine}.${replica}.>`,
];

/**
 * Bucket `traffic`, four entries of each gateway: `<gateway>` (requests in flight where none should come any more; also its sign of life),
 * `<gateway>.canary` (counts of canaries), `<gateway>.asked` (names that were asked for lately), `<gateway>.demand` (engines that may
 * be scaled to zero, and how many requests wait for each). Whoever reads one kind is told of no other.
 */
export const trafficKeys = (gateway: string) => ({
  inFlight: gateway,
  canary: `${gateway}.canary`,
  asked: `${gateway}.asked`,
  demand: `${gateway}.demand`,
});
/** Match one kind of entry of every gateway. */
export const everyTraffic = { inFlight: "*", canary: "*.canary", asked: "*.asked", demand: "*.demand" } as const;

/** Bucket `sessions`: `<tenant>.<sha256 of the cookie or link, hex>`; `everyKeyOf` matches a tenant's. */
export const sessionKey = ({ tenant, hex }: { tenant: string; hex: string }): string => `${tenant}.${hex}`;

/** Bucket `waited`: `<durable consumer>.<sequence in its stream>`. */
export const waitedKey = ({ durable, seq }: { durable: string; seq: number }): string => `${durable}.${seq}`;

/** Bucket `cache`: `<stage>.<tenant>.<hex>`; `hex` is the digest of all inputs, without its prefix. */
export const cacheKey = ({ stage, tenant, hex }: { stage: "ingest" | "tokenize" | "chunk"; tenant: string; hex: string }): string =>
  `${stage}.${tenant}.${hex}`;

/** Buckets `limits` and `budgets`: `<tenant>`, or `<tenant>.<adapter>` for one adapter's own. */
export const limitKey = ({ tenant, adapter }: { tenant: string; adapter?: string | null | undefined }): string =>
  adapter === undefined || adapter === null ? tenant : `${tenant}.${adapter}`;
export const parseLimitKey = (key: string): { tenant: string; adapter: string | null } => {
  const [tenant = "", adapter] = key.split(".");
  return { tenant, adapter: adapter ?? null };
};

/** Bucket `budgets`: `<tenant>.-.uploads`, for bytes of uploads; three parts, so it is never the key of a limit. */
export const uploadBudgetKey = (tenant: string): string => `${tenant}.-.uploads`;

/** Takes the place of the gateway in the key of a day's total, which is made when the day is over. */
export const usageTotal = "total";

/** `day` is of UTC, `YYYY-MM-DD`; `adapter` is null for the bases; `holder` is a gateway's id or `usageTotal`. */
interface UsageKey {
  readonly tenant: string;
  readonly day: string;
  readonly adapter: string | null;
  readonly holder: string;
}

/** Bucket `usage`: `<tenant>.<day>.<adapter, or - for bases>.<holder>`. */
export const usageKey = ({ tenant, day, adapter, holder }: UsageKey): string => `${tenant}.${day}.${adapter ?? "-"}.${holder}`;
export const parseUsageKey = (key: string): UsageKey => {
  const [tenant = "", day = "", adapter = "", holder = ""] = key.split(".");
  return { tenant, day, adapter: adapter === "-" ? null : adapter, holder };
};
/** Matches all usage of a tenant on one day. */
export const everyUsageOf = ({ tenant, day }: Pick<UsageKey, "tenant" | "day">): string => `${tenant}.${day}.>`;
/** Matches all usage of a tenant. */
export const everyUsageOfTenant = (tenant: string): string => `${tenant}.>`;

/** Bucket `responses`: `<tenant>.<ulid>`; `everyKeyOf` matches a tenant's. */
export const responseKey = ({ tenant, id }: { readonly tenant: string; readonly id: string }): string => `${tenant}.${id}`;

/** Bucket `uploads`: `<tenant>.<ulid>`. */
export const uploadKey = ({ tenant, id }: { readonly tenant: string; readonly id: string }): string => `${tenant}.${id}`;

export const parseUploadKey = parseRunKey;

/** Bucket `deletions`: `<tenant>.<what>.<id>`. */
export const deletionKey = ({ tenant, what, id }: Pick<DeletionState, "tenant" | "what" | "id">): string => `${tenant}.${what}.${id}`;
/** Matches every deletion of one tenant. */
export const everyDeletionOf = (tenant: string): string => `${tenant}.>`;

/** Matches every entry of one tenant in `cache`. */
export const everyCacheKeyOf = (tenant: string): string => `*.${tenant}.*`;
export const stageOfCacheKey = (key: string): string => key.split(".")[0] ?? "";

/** Matches all usage of one adapter. */
export const everyUsageOfAdapter = ({ tenant, adapter }: AdapterOfTenant): string => `${tenant}.*.${adapter}.>`;
/** Matches what every replica holds of a tenant, or of one of its adapters. */
export const everyHolding = ({ tenant, adapter = "*" }: { tenant: string; adapter?: string }): string => `*.*.${tenant}.${adapter}`;
