/** `GET /v1/models`: the bases, and the tenant's own aliases and versions that are proven. */
import type { EngineRecord, Modality, ModelObject, RoutedAdapter, RoutedVersion } from "@loraline/contracts";
import type { FastifyInstance } from "fastify";
import { boundNameOf } from "../access/decide-models.ts";
import type { GatewayContext } from "../context.ts";
import { PermanentError } from "@loraline/runtime";
import type { Candidates } from "./decide-replicas.ts";
import { enginesFor, parseModel, type RoutingView, versionOfCheckpoint } from "./decide-route.ts";

const unix = (iso: string): number => Math.floor(Date.parse(iso) / 1000);

/** Pure: what a tenant may name in a request and get an answer from. */
export function modelsOf(view: RoutingView, tenant: string): ModelObject[] {
  const ready = readyCounts(view);
  const adapters = [...view.adaptersOf(tenant)]
    .toSorted((a, b) => (a.adapter < b.adapter ? -1 : 1))
    .flatMap((adapter) => adapterModels(view, adapter, ready));
  return [...baseModels(view, tenant, ready), ...adapters];
}

/** How many replicas of an engine are ready; each engine is counted once. */
function readyCounts(view: RoutingView): (engine: string) => number {
  const counts = new Map<string, number>();
  return (engine) => {
    const count = counts.get(engine) ?? readyOf(view.replicasOf(engine));
    counts.set(engine, count);
    return count;
  };
}
const readyOf = ({ replicas }: Candidates): number => replicas.filter(({ state, fresh }) => fresh && state.ready).length;

const baseModels = (view: RoutingView, tenant: string, ready: (engine: string) => number): ModelObject[] =>
  [...Map.groupBy(enginesFor(view, tenant), ({ base }) => base.name)].map(([base, engines]) => baseModel(base, engines, ready));

const modalitiesOf = (takesPictures: boolean): Modality[] => (takesPictures ? ["text", "image"] : ["text"]);

/** A base is one model, however many engines serve it. */
function baseModel(base: string, engines: readonly EngineRecord[], readyOn: (engine: string) => number): ModelObject {
  const ready = engines.reduce((sum, { engine }) => sum + readyOn(engine), 0);
  return {
    id: base,
    object: "model",
    created: Math.min(...engines.map(({ updatedAt }) => unix(updatedAt))),
    owned_by: "loraline",
    loraline: {
      base,
      adapter: null,
      version: null,
      digest: null,
      provenReplicas: ready,
      readyReplicas: ready,
      modalities: modalitiesOf(engines.every(({ pictures }) => (pictures ?? 0) > 0)),
    },
  };
}

/** @param retired - this version too if it was retired: it answers when it is loaded again. */
function adapterModels(view: RoutingView, adapter: RoutedAdapter, readyOn: (engine: string) => number, retired?: number): ModelObject[] {
  const modalities = modalitiesOf((view.engine(adapter.engine)?.pictures ?? 0) > 0);
  const model = (id: string, version: RoutedVersion, provenReplicas: number): ModelObject => ({
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
      readyReplicas: readyOn(adapter.engine),
      modalities,
    },
  });
  const name = `${adapter.tenant}/${adapter.adapter}`;
  return adapter.versions.flatMap((version) => {
    // Not in the list: a client that tries every model in it would have all of them loaded.
    if (version.status === "retired" && version.version === retired) return [model(`${name}@${version.version}`, version, 0)];
    const proven = version.status === "desired" ? readyOf(view.provenOn(version.engineName)) : 0;
    if (proven === 0) return [];
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
      const ready = readyCounts(view);
      const adapter = asked?.tenant === tenant ? view.adapter(asked) : undefined;
      const isOther = adapter !== undefined && asked?.base !== undefined && asked.base !== adapter.base;
      const version = asked?.checkpoint === undefined ? asked?.version : versionOfCheckpoint(adapter, asked.checkpoint)?.version;
      const ids = [name, `${tenant}/${asked?.adapter}@${version}`];
      const found =
        baseModels(view, tenant, ready).find(({ id }) => id === name) ??
        (adapter === undefined || isOther ? undefined : adapterModels(view, adapter, ready, version).find(({ id }) => ids.includes(id)));
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
