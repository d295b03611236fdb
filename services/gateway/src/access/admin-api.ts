/** `/v1/loraline/keys`, `limits` and `usage`, which a tenant's admins see and change for their own tenant only. */
import {
  adapterKey,
  buckets,
  createKeyBody,
  type KeyView,
  limitBody,
  limitKey,
  type LimitState,
  parseLimitKey,
  type QuotaChoice,
  scopes,
  tenantLimitBody,
} from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime";
import type { FastifyInstance, FastifyRequest } from "fastify";
import type { z } from "zod";
import { type ApiKeyRecord, type Caller, createApiKey, hashApiKey, keyIdOf, newApiKey, revoked } from "./auth.ts";
import { createAudited } from "./audit.ts";
import { parsedBody } from "../body.ts";
import type { GatewayContext, KeyLifetimes } from "../context.ts";
import { badRequest, notFound } from "../errors.ts";
import { ownAdapterName } from "../openai-ids.ts";
import { type DailyUsage, dayOf } from "./usage.ts";

const dayMs = 24 * 60 * 60_000;
const defaultDays = 30;
const mostDays = 92;

export async function adminRoutes(context: GatewayContext): Promise<(app: FastifyInstance) => void> {
  const { bus, limits, quotas, usage, keysOf, keyLifetimes, log } = context;
  const audited = createAudited(context);
  const keys = await bus.bucket(buckets.keys);
  const limitsBucket = await bus.bucket(buckets.limits);
  const adapters = await bus.bucket(buckets.adapters);

  const limitOf = ({ caller: { tenant }, params }: FastifyRequest): { key: string; adapter: string | null } => {
    const { adapter: given } = params as { adapter?: string };
    if (given === undefined) return { key: limitKey({ tenant }), adapter: null };
    const adapter = ownAdapterName(tenant, given);
    if (!/^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/.test(adapter))
      throw badRequest("invalid_adapter", `"${adapter}" is no adapter's name.`, "adapter");
    return { key: limitKey({ tenant, adapter }), adapter };
  };
  const changeLimit = async (request: FastifyRequest, body: z.infer<typeof limitBody>, chosen: QuotaChoice = {}) => {
    const { key, adapter } = limitOf(request);
    const { by, tenant } = request.caller;
    // A limit of a misspelt name would hold nobody.
    if (adapter !== null && (await adapters.get(adapterKey({ tenant, adapter }))) === undefined)
      throw notFound("adapter", adapter, "adapter");
    const next: LimitState = {
      requestsPerMinute: body.requests_per_minute ?? null,
      tokensPerMinute: body.tokens_per_minute ?? null,
      concurrency: body.concurrency ?? null,
      ...chosen,
      by,
      at: new Date().toISOString(),
    };
    if ((await limitsBucket.get(key))?.value.fixed === true) throw fixedLimit(adapter);
    const deed = { action: "limit.set", target: key, details: { ...body, ...chosen } } as const;
    await audited(request, deed, () =>
      limitsBucket.change(key, (current) => {
        if (current?.fixed === true) throw fixedLimit(adapter);
        return next;
      }),
    );
    log.info({ limit: key, ...body, ...chosen, by }, "limit changed");
    return { ...next, adapter };
  };
  const removeLimit = async (request: FastifyRequest) => {
    const { key, adapter } = limitOf(request);
    const current = await limitsBucket.get(key);
    if (current === undefined) throw notFound("limit", adapter ?? "of the tenant", "adapter");
    if (current.value.fixed === true) throw fixedLimit(adapter);
    await audited(request, { action: "limit.remove", target: key }, () => limitsBucket.delete(key));
    log.info({ limit: key, by: request.caller.by }, "limit removed");
    return { adapter, deleted: true };
  };

  return (app) => {
    app.get("/loraline/keys", async (request) => ({
      data: keysOf(request.caller.tenant)
        .map(([hash, record]) => keyViewOf(hash, record))
        .toSorted((a, b) => (a.createdAt < b.createdAt ? 1 : -1)),
    }));

    app.post("/loraline/keys", async (request) => {
      const { tenant, by } = request.caller;
      const body = parsedBody(createKeyBody, request.body);
      if (body.expires_at !== undefined && Date.parse(body.expires_at) <= Date.now()) {
        throw badRequest("expires_in_the_past", `expires_at: ${body.expires_at} is over. Give a time to come, or none.`, "expires_at");
      }
      if (body.models !== undefined && (body.scopes ?? scopes).includes("admin")) {
        throw badRequest(
          "bound_admin",
          "models: a key with the scope `admin` cannot be bound to models. Give `scopes` without it.",
          "models",
        );
      }
      const expiresAt = expiryOf(body.expires_at, request.caller, keyLifetimes);
      const record = {
        tenant,
        name: body.name,
        createdBy: by,
        ...(body.scopes === undefined ? {} : { scopes: [...new Set(body.scopes)] }),
        ...(body.models === undefined ? {} : { models: [...new Set(body.models)] }),
        ...(expiresAt === undefined ? {} : { expiresAt }),
      };
      const key = newApiKey();
      const { tenant: _tenant, createdBy: _createdBy, ...details } = record;
      await audited(request, { action: "key.create", target: keyIdOf(hashApiKey(key)), details }, () =>
        createApiKey({ bus }, { ...record, key }),
      );
      const view = keyViewOf(hashApiKey(key), { ...record, createdAt: new Date().toISOString() });
      log.info({ tenant, by, key: view.id, name: view.name, scopes: view.scopes }, "key created");
      return { ...view, key };
    });

    app.delete("/loraline/keys/:id", async (request) => {
      const { id } = request.params as { id: string };
      const { tenant, by } = request.caller;
      const found = keysOf(tenant).find(([hash]) => keyIdOf(hash) === id);
      if (found === undefined) throw notFound("key", id, "id");
      await audited(request, { action: "key.revoke", target: id, details: { name: found[1].name } }, () =>
        keys.change(found[0], (record) => record && revoked(record, new Date().toISOString())),
      );
      log.info({ tenant, by, key: id, name: found[1].name }, "key revoked");
      return { id, deleted: true };
    });

    app.get("/loraline/limits", async (request) => {
      const { tenant } = request.caller;
      const all = [...limits.all()].map(([key, limit]) => ({ of: parseLimitKey(key), limit }));
      return {
        data: all.filter(({ of }) => of.tenant === tenant).map(({ of, limit }) => ({ ...limit, adapter: of.adapter })),
        quotas: await quotas.view(tenant),
      };
    });
    app.put("/loraline/limits", async (request) => {
      const body = parsedBody(tenantLimitBody, request.body);
      return changeLimit(request, body, quotas.choiceFrom(request.caller.tenant, body));
    });
    app.put("/loraline/limits/:adapter", async (request) => changeLimit(request, parsedBody(limitBody, request.body)));
    for (const path of ["/loraline/limits", "/loraline/limits/:adapter"]) app.delete(path, removeLimit);

    app.get("/loraline/usage", async (request) => {
      const days = daysOf(request.query);
      const data: DailyUsage[] = await usage.read(request.caller.tenant, days);
      return { ...days, data };
    });
  };
}

/**
 * When a new key ends: as asked, or as late as it may. No key outlives the one that made it, since whoever has a key for a month could
 * otherwise have one for ever.
 * @returns undefined: never.
 * @throws PermanentError 400 `expires_too_late`
 */
function expiryOf(asked: string | undefined, { key }: Caller, { days, oidcDays }: KeyLifetimes): string | undefined {
  const inDays = (count: number): number => Date.now() + count * dayMs;
  const bounds = [
    ...(days === undefined ? [] : [{ at: inDays(days), why: `keys of this installation may live for ${days} days` }]),
    ...(key === null ? [{ at: inDays(oidcDays), why: `keys that are made with a token may live for ${oidcDays} days` }] : []),
    ...(key?.expiresAt ? [{ at: Date.parse(key.expiresAt), why: "a key cannot outlive the one that makes it" }] : []),
  ];
  const bound = bounds.toSorted((a, b) => a.at - b.at)[0];
  if (bound === undefined) return asked;
  const latest = new Date(bound.at).toISOString();
  if (asked === undefined) return latest;
  if (Date.parse(asked) > bound.at) {
    throw badRequest("expires_too_late", `expires_at: ${bound.why}, so ${latest} is the latest time.`, "expires_at");
  }
  return asked;
}

const keyViewOf = (hash: string, { name, scopes: has, models, createdAt, createdBy, expiresAt }: ApiKeyRecord): KeyView => ({
  id: keyIdOf(hash),
  name,
  scopes: [...(has ?? scopes)],
  models: models ?? null,
  createdAt,
  createdBy: createdBy ?? null,
  expiresAt: expiresAt ?? null,
});

const fixedLimit = (adapter: string | null): PermanentError =>
  new PermanentError("limit_fixed", `The limit of ${adapter ?? "this tenant"} is set by the operator and cannot be changed here.`, {
    status: 403,
  });

/** @throws PermanentError 400 if the query is not a range of days, or the range is too long. */
function daysOf(query: unknown): { from: string; to: string } {
  const { from, to } = query as { from?: string; to?: string };
  const day = (name: string, given: string | undefined, otherwise: number): string => {
    if (given === undefined) return dayOf(otherwise);
    if (!/^\d{4}-\d\d-\d\d$/.test(given) || Number.isNaN(Date.parse(given))) {
      throw badRequest("invalid_day", `${name} must be a day such as ${dayOf(Date.now())}, not "${given}".`, name);
    }
    return given;
  };
  const last = day("to", to, Date.now());
  const first = day("from", from, Date.parse(last) - (defaultDays - 1) * dayMs);
  const count = (Date.parse(last) - Date.parse(first)) / dayMs + 1;
  if (count < 1) throw badRequest("invalid_day", `from (${first}) comes after to (${last}).`, "from");
  if (count > mostDays)
    throw badRequest("too_many_days", `${count} days are more than can be read at once (${mostDays}). Ask in parts.`, "from");
  return { from: first, to: last };
}
