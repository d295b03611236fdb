/** `GET /v1/models`: the bases, and the tenant's own aliases and versions that are proven. */
import { adapterKey, type AdapterState, type AdapterVersion, type EngineRecord, type ModelObject } from "@loraline/contracts";
import type { FastifyInstance } from "fastify";
import { boundNameOf } from "../access/decide-models.ts";
import type { GatewayContext } from "../context.ts";
import { enginesFor, parseModel, type ReplicaView, type RoutingView } from "./decide-route.ts";
import { PermanentError } from "@loraline/runtime";

const unix = (iso: string): number => Math.floor(Date.parse(iso) / 1000);

/** Pure: what a tenant may name in a request and get an answer from. */
export function modelsOf(view: RoutingView, tenant: string): ModelObject[] {
  const bases = [...Map.groupBy(enginesFor(view, tenant), ({ base }) => base.name)].map(([base, engines]) =>
    baseModel(view, base, engines),
  );
  const adapters = [...view.adapters.values()]
    .filter((adapter) => adapter.tenant === tenant)
    .toSorted((a, b) => (a.adapter < b.adapter ? -1 : 1))
    .flatMap((adapter) => adapterModels(view, adapter));
  return [...bases, ...adapters];
}

const readyReplicas = ({ replicas }: RoutingView, engine: string): ReplicaView[] =>
  replicas.filter(({ state, fresh }) => fresh && state.ready && state.engine === engine);

/** A base is one model, however many engines serve it. */
function baseModel(view: RoutingView, base: string, engines: readonly EngineRecord[]): ModelObject {
  const ready = engines.flatMap(({ engine }) => readyReplicas(view, engine)).length;
  return {
    id: base,
    object: "model",
    created: Math.min(...engines.map(({ updatedAt }) => unix(updatedAt))),
    owned_by: "loraline",
    loraline: { base, adapter: null, version: null, digest: null, provenReplicas: ready, readyReplicas: ready },
  };
}

/** @param retired - this version too if it was retired: it answers when it is loaded again. */
function adapterModels(view: RoutingView, adapter: AdapterState, retired?: number): ModelObject[] {
  const ready = readyReplicas(view, adapter.engine);
  const model = (id: string, version: AdapterVersion, provenReplicas: number): ModelObject => ({
    id,
    object: "model",
    created: unix(version.servedAt ?? version.createdAt),
    owned_by: adapter.tenant,
    loraline: {
      base: adapter.base,
      adapter: adapter.adapter,
      version: version.version,
      digest: version.digest,
      provenReplicas,
      readyReplicas: ready.length,
    },
  });
  const name = `${adapter.tenant}/${adapter.adapter}`;
  return adapter.versions.flatMap((version) => {
    // Not in the list: a client that tries every model in it would have all of them loaded.
    if (version.status === "retired" && version.version === retired) return [model(`${name}@${version.version}`, version, 0)];
    const proven = ready.filter(({ proven: names }) => names.has(version.engineName)).length;
    if (version.status !== "desired" || proven === 0) return [];
    const pinned = model(`${name}@${version.version}`, version, proven);
    return version.version === adapter.alias ? [model(name, version, proven), pinned] : [pinned];
  });
}

export function modelRoutes({ table }: GatewayContext): (app: FastifyInstance) => void {
  return (app) => {
    app.get("/models", async ({ caller: { tenant, models } }) => {
      const all = modelsOf(table.view(), tenant);
      const isAllowed = ({ id, loraline }: ModelObject): boolean =>
        models?.allows(boundNameOf(id, { tenant, isBase: loraline?.adapter === null })) ?? true;
      return { object: "list", data: all.filter(isAllowed) };
    });

    // Names have slashes, and the SDKs send them both escaped and plain.
    app.get("/models/*", async (request) => {
      const { "*": name } = request.params as { "*": string };
      const asked = parseModel(name);
      const { tenant } = request.caller;
      const view = table.view();
      const listed = modelsOf(view, tenant).find(({ id }) => id === name);
      if (listed !== undefined) return listed;
      const adapter = asked?.tenant === tenant ? view.adapters.get(adapterKey(asked)) : undefined;
      const found =
        asked === undefined || adapter === undefined || (asked.base !== undefined && asked.base !== adapter.base)
          ? undefined
          : adapterModels(view, adapter, asked.version).find(({ id }) => id === `${tenant}/${asked.adapter}@${asked.version}`);
      if (found === undefined) throw modelNotFound(name, null);
      return found;
    });
  };
}

export const modelNotFound = (model: string, reason: string | null): PermanentError =>
  new PermanentError(
    "model_not_found",
    reason ?? `The model \`${model}\` does not exist or you do not have access to it. GET /v1/models lists those you can use.`,
    { status: 404, param: "model" },
  );
