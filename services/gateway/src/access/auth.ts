/** Authenticates callers: by API keys, of which only the sha256 is stored (KV `keys`), and by tokens of an OIDC issuer if one is configured. */
import { hash as digestOf, randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import type { Bus } from "@loraline/bus";
import { type Actor, type apiKeyRecord, buckets, type Scope, scopes } from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime";
import type { z } from "zod";
import { type BoundModels, boundModels } from "./decide-models.ts";

export interface Caller {
  tenant: string;
  /** Name of the key, or `oidc:<subject>`: for the audit trail. */
  by: string;
  scopes: ReadonlySet<Scope>;
  /** The only models that the caller may name; null: all of the tenant's. */
  models: BoundModels | null;
  /** Who it is, for the audit log. */
  actor: Actor;
  /** The key by which the caller is known; null: a token of the issuer. */
  key: { id: string; expiresAt: string | null } | null;
  /** When the session ends by whose cookie the caller is known; absent: it sent a key or token. */
  sessionEndsAt?: string;
}

export type ApiKeyRecord = z.infer<typeof apiKeyRecord>;

export const hashApiKey = (key: string): string => digestOf("sha256", key);

/** The id of a key in lists and in `revoke`: the start of its hash, which is unique and cannot be used as a key. */
export const keyIdOf = (hash: string): string => hash.slice(0, 16);

export const newApiKey = (): string => `ll-${randomBytes(32).toString("base64url")}`;

/**
 * Makes a key valid for a tenant. Doing it again with the same key changes nothing, so a key that was revoked stays revoked.
 * @param options.key - absent: a new random one.
 * @param options.scopes - absent: all of them.
 * @returns the key itself; it cannot be read from the store later.
 */
export async function createApiKey(
  { bus }: { bus: Pick<Bus, "bucket"> },
  {
    key = newApiKey(),
    ...record
  }: {
    tenant: string;
    name: string;
    key?: string;
    scopes?: readonly Scope[];
    models?: readonly string[];
    expiresAt?: string;
    createdBy?: string;
  },
): Promise<string> {
  const keys = await bus.bucket(buckets.keys);
  const { scopes: given, models, ...rest } = record;
  const made: ApiKeyRecord = {
    ...rest,
    ...(given === undefined ? {} : { scopes: [...given] }),
    ...(models === undefined ? {} : { models: [...models] }),
    createdAt: new Date().toISOString(),
  };
  await keys.change(hashApiKey(key), (known) => known ?? made);
  return key;
}

export interface KeyCheck {
  /**
   * Returns a promise only if NATS or the issuer has to be asked first.
   * @throws PermanentError 401 `invalid_api_key`, `api_key_expired`.
   */
  (authorization: string | undefined): Caller | Promise<Caller>;
  /** The same for a key that is known by its hash only, as of a session. */
  byHash(hash: string): Caller | Promise<Caller>;
  /** Keys of a tenant, by hash. */
  keysOf(tenant: string): [string, ApiKeyRecord][];
}

/** For how many unknown keys a second NATS is asked, of all senders together. */
const askedPerSecond = 20;
/** The time that a new key needs to reach the watch. */
const watchLagMs = 200;

const everyScope: ReadonlySet<Scope> = new Set(scopes);

/**
 * Watches the keys, so that a check costs no round trip and a revoked key ends at once.
 * @param deps.checkToken - checks what looks like a JSON Web Token; absent: no issuer is configured.
 */
export async function createKeyCheck({
  bus,
  signal,
  checkToken,
}: {
  bus: Pick<Bus, "bucket">;
  signal: AbortSignal;
  checkToken?: ((token: string) => Caller | Promise<Caller>) | undefined;
}): Promise<KeyCheck> {
  const keys = await bus.bucket(buckets.keys);
  interface Known {
    record: ApiKeyRecord;
    caller: Caller;
    /** Milliseconds since the epoch. */
    expiresAt: number;
  }
  const known = new Map<string, Known>();
  const knownOf = (hash: string, record: ApiKeyRecord): Known => ({
    record,
    caller: {
      tenant: record.tenant,
      by: record.name,
      scopes: record.scopes ? new Set(record.scopes) : everyScope,
      models: record.models ? boundModels(record.models) : null,
      actor: { kind: "key", id: keyIdOf(hash), name: record.name },
      key: { id: keyIdOf(hash), expiresAt: record.expiresAt ?? null },
    },
    expiresAt: record.expiresAt ? Date.parse(record.expiresAt) : Number.POSITIVE_INFINITY,
  });
  await keys.watch({
    signal,
    onChange: (hash, record) => {
      if (record === undefined) known.delete(hash);
      else known.set(hash, knownOf(hash, record));
    },
  });

  const judge = (found: Known | undefined, key: string): Caller => {
    if (found === undefined) throw refused(`Incorrect API key provided: ${masked(key)}.`);
    if (found.record.revokedAt)
      throw refused(`The API key "${found.record.name}" was revoked (${found.record.revokedAt}). Make a new one.`);
    if (Date.now() >= found.expiresAt) {
      const message = `The API key "${found.record.name}" has expired (${found.record.expiresAt}). Make a new one.`;
      throw new PermanentError("api_key_expired", message, { status: 401 });
    }
    return found.caller;
  };
  let [second, asked] = [0, 0];
  const mayAsk = (): boolean => {
    const now = Math.floor(performance.now() / 1000);
    if (now !== second) [second, asked] = [now, 0];
    return asked++ < askedPerSecond;
  };
  const check = (authorization: string | undefined): Caller | Promise<Caller> => {
    const key = /^Bearer +(\S+) *$/i.exec(authorization ?? "")?.[1];
    if (key === undefined) throw refused("You didn't provide an API key. Send it as `Authorization: Bearer YOUR_KEY`.");
    if (checkToken !== undefined && looksLikeToken.test(key)) return checkToken(key);
    return byHash(hashApiKey(key), key);
  };
  const byHash = (hash: string, key = ""): Caller | Promise<Caller> => {
    const found = known.get(hash);
    if (found !== undefined) return judge(found, key);
    // A new key may not have reached the watch yet, so NATS is asked. The number is limited, because anybody can send invented keys.
    if (mayAsk()) return keys.get(hash).then((entry) => judge(entry && knownOf(hash, entry.value), key));
    return sleep(watchLagMs).then(() => judge(known.get(hash), key));
  };
  return Object.assign(check, {
    byHash: (hash: string) => byHash(hash),
    keysOf: (tenant: string) =>
      [...known]
        .filter(([, { record }]) => record.tenant === tenant && !record.revokedAt)
        .map(([hash, { record }]): [string, ApiKeyRecord] => [hash, record]),
  });
}

/**
 * Makes a key as whoever runs the installation, which the audit log tells first. A key that is there already stays as it is.
 * @returns the key.
 */
export async function createOperatorKey(
  { bus }: { bus: Pick<Bus, "bucket" | "audit"> },
  { by, ...record }: Omit<Parameters<typeof createApiKey>[1], "createdBy"> & { by: string },
): Promise<string> {
  const { key = newApiKey(), tenant, name, scopes: given, models, expiresAt } = record;
  const id = keyIdOf(hashApiKey(key));
  if ((await (await bus.bucket(buckets.keys)).get(hashApiKey(key))) === undefined) {
    const actor: Actor = { kind: "operator", id: by };
    const details = { name, scopes: given, models, expiresAt };
    await bus.audit.record({ id: `key.create/${id}`, tenant, action: "key.create", target: id, by: actor, outcome: "accepted", details });
  }
  return createApiKey({ bus }, { ...record, key, createdBy: "operator" });
}

/** Whether a text looks like a JSON Web Token: three base64url parts, the first of them a JSON object. */
const looksLikeToken = /^eyJ[\w-]*\.[\w-]+\.[\w-]*$/;

export const refused = (message: string): PermanentError => new PermanentError("invalid_api_key", message, { status: 401 });

/** @throws PermanentError 403 `insufficient_scope` unless the caller has one of `needed`. */
export function checkScope({ by, scopes: has }: Caller, needed: readonly Scope[]): void {
  for (const scope of needed) if (has.has(scope)) return;
  const words = needed.map((scope) => `\`${scope}\``).join(" or ");
  const holds = has.size === 0 ? "none" : [...has].map((scope) => `\`${scope}\``).join(", ");
  throw new PermanentError(
    "insufficient_scope",
    `This needs the scope ${words}, which "${by}" does not have (it has ${holds}). Use another key, or have one made with \`loraline keys create --scopes\`.`,
    { status: 403 },
  );
}

/** The record of a revoked key. It also sets `expiresAt`, by which a gateway of an older version refuses the key. */
export const revoked = (record: ApiKeyRecord, now: string): ApiKeyRecord => ({ ...record, revokedAt: now, expiresAt: now });

const masked = (key: string): string => (key.length < 12 ? "***" : `${key.slice(0, 4)}***${key.slice(-4)}`);
