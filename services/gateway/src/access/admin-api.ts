/** `/v1/loraline/keys`, `limits` and `usage`, which a tenant's admins see and change for their own tenant only. */
import {
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
import { createApiKey, hashApiKey, keyIdOf, needs, revoked, type ApiKeyRecord } from "./auth.ts";
import { parsedBody } from "../body.ts";
import type { GatewayContext } from "../context.ts";
import { badRequest, notFound } from "../errors.ts";
import { ownAdapterName } from "../openai-ids.ts";
import { type DailyUsage, dayOf } from "./usage.ts";

const dayMs = 24 * 60 * 60_000;
const defaultDays = 30;
const mostDays = 92;

export async function adminRoutes(context: GatewayContext): Promise<(app: FastifyInstance) => void> {
  const { bus, limits, quotas, usage, keysOf, log } = context;
  const keys = await bus.bucket(buckets.keys);
  const limitsBucket = await bus.bucket(buckets.limits);

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
    const { by } = request.caller;
    const next: LimitState = {
      requestsPerMinute: body.requests_per_minute ?? null,
      tokensPerMinute: body.tokens_per_minute ?? null,
      concurrency: body.concurrency ?? null,
      ...chosen,
      by,
      at: new Date().toISOString(),
    };
    await limitsBucket.change(key, (current) => {
      if (current?.fixed === true) throw fixedLimit(adapter);
      return next;
    });
    log.info({ limit: key, ...body, ...chosen, by }, "limit changed");
    return { ...next, adapter };
  };
  const removeLimit = async (request: FastifyRequest) => {
    const { key, adapter } = limitOf(request);
    const current = await limitsBucket.get(key);
    if (current === undefined) throw notFound("limit", adapter ?? "of the tenant", "adapter");
    if (current.value.fixed === true) throw fixedLimit(adapter);
    await limitsBucket.delete(key);
    log.info({ limit: key, by: request.caller.by }, "limit removed");
    return { adapter, deleted: true };
  };

  return (app) => {
    app.get("/loraline/keys", needs("admin"), async (request) => ({
      data: keysOf(request.caller.tenant)
        .map(([hash, record]) => keyViewOf(hash, record))
        .toSorted((a, b) => (a.createdAt < b.createdAt ? 1 : -1)),
    }));

    app.post("/loraline/keys", needs("admin"), async (request) => {
      const { tenant, by } = request.caller;
      const body = parsedBody(createKeyBody, request.body);
      if (body.expires_at !== undefined && Date.parse(body.expires_at) <= Date.now()) {
        throw badRequest("expires_in_the_past", `expires_at: ${body.expires_at} is over. Give a time to come, or none.`, "expires_at");
      }
      const record = {
        tenant,
        name: body.name,
        createdBy: by,
        ...(body.scopes === undefined ? {} : { scopes: [...new Set(body.scopes)] }),
        ...(body.expires_at === undefined ? {} : { expiresAt: body.expires_at }),
      };
      const key = await createApiKey({ bus }, record);
      const view = keyViewOf(hashApiKey(key), { ...record, createdAt: new Date().toISOString() });
      log.info({ tenant, by, key: view.id, name: view.name, scopes: view.scopes }, "key created");
      return { ...view, key };
    });

    app.delete("/loraline/keys/:id", needs("admin"), async (request) => {
      const { id } = request.params as { id: string };
      const { tenant, by } = request.caller;
      const found = keysOf(tenant).find(([hash]) => keyIdOf(hash) === id);
      if (found === undefined) throw notFound("key", id, "id");
      await keys.change(found[0], (record) => record && revoked(record, new Date().toISOString()));
      log.info({ tenant, by, key: id, name: found[1].name }, "key revoked");
      return { id, deleted: true };
    });

    app.get("/loraline/limits", needs("admin"), async (request) => {
      const { tenant } = request.caller;
      const all = [...limits.all()].map(([key, limit]) => ({ of: parseLimitKey(key), limit }));
      return {
        data: all.filter(({ of }) => of.tenant === tenant).map(({ of, limit }) => ({ ...limit, adapter: of.adapter })),
        quotas: await quotas.view(tenant),
      };
    });
    app.put("/loraline/limits", needs("admin"), async (request) => {
      const body = parsedBody(tenantLimitBody, request.body);
      return changeLimit(request, body, quotas.choiceFrom(request.caller.tenant, body));
    });
    app.put("/loraline/limits/:adapter", needs("admin"), async (request) => changeLimit(request, parsedBody(limitBody, request.body)));
    for (const path of ["/loraline/limits", "/loraline/limits/:adapter"]) app.delete(path, needs("admin"), removeLimit);

    app.get("/loraline/usage", needs("admin"), async (request) => {
      const days = daysOf(request.query);
      const data: DailyUsage[] = await usage.read(request.caller.tenant, days);
      return { ...days, data };
    });
  };
}

const keyViewOf = (hash: string, { name, scopes: has, createdAt, createdBy, expiresAt }: ApiKeyRecord): KeyView => ({
  id: keyIdOf(hash),
  name,
  scopes: [...(has ?? scopes)],
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
