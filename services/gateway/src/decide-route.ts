/**
 * Pure: which replica answers for a model name.
 *
 *   name ──► base ──────────────────────────────► replicas of its engine, ready
 *     │
 *     └────► alias ──► version ──► engine name ──► replicas that have it proven, ready
 *
 * A request keeps the version that was decided when it began.
 */
import type { AdapterState, AdapterVersion, EngineRecord, ReplicaState } from "@loraline/contracts";
import { parseFineTunedModel } from "./openai-ids.ts";

export interface ReplicaView {
  state: ReplicaState;
  /** Engine names that are proven in the replica's present incarnation. */
  proven: ReadonlySet<string>;
  /** Its heartbeat is recent. A replica that fell silent is asked last, not never: the silence may be the bus's. */
  fresh: boolean;
  /** Requests of this gateway that it is answering. */
  inFlight: number;
}

export interface RoutingView {
  engines: readonly EngineRecord[];
  /** Key `<tenant>.<adapter>`. */
  adapters: ReadonlyMap<string, AdapterState>;
  replicas: readonly ReplicaView[];
}

export type RouteDecision =
  | {
      kind: "route";
      /** The name the answer carries: a base, or `<tenant>/<adapter>@<version>`. */
      model: string;
      /** The name the engine knows. */
      engineModel: string;
      version: AdapterVersion | null;
      /** Best first, never empty. */
      replicas: readonly [ReplicaView, ...ReplicaView[]];
    }
  | { kind: "unknown"; reason: string | null }
  | { kind: "unavailable"; reason: string; retryAfterMs: number };

const unknown: RouteDecision = { kind: "unknown", reason: null };

export function decideRoute(view: RoutingView, { tenant, model }: { tenant: string; model: string }): RouteDecision {
  const engine = enginesFor(view, tenant).find((candidate) => candidate.base.name === model);
  if (engine !== undefined) {
    const ready = view.replicas.filter(({ state }) => state.base === model && state.engine === engine.engine && state.ready);
    const [best, ...others] = inOrderOfChoice(ready, model);
    if (best === undefined) {
      return { kind: "unavailable", reason: `No replica of the base "${model}" is ready.`, retryAfterMs: 5000 };
    }
    return { kind: "route", model, engineModel: model, version: null, replicas: [best, ...others] };
  }
  const named = parseModel(model);
  const adapter = named?.tenant === tenant ? view.adapters.get(`${tenant}.${named.adapter}`) : undefined;
  if (named === undefined || adapter === undefined) return unknown;
  if (named.base !== undefined && named.base !== adapter.base) return unknown;
  return decideVersion(view, adapter, named.version);
}

function decideVersion(view: RoutingView, adapter: AdapterState, pinned: number | undefined): RouteDecision {
  const name = `${adapter.tenant}/${adapter.adapter}`;
  const number = pinned ?? adapter.alias;
  if (number === null) return notPromoted(name, adapter);
  const version = adapter.versions.find((candidate) => candidate.version === number);
  if (version === undefined) return unknown;
  if (version.status !== "desired") {
    const why = version.reason === null ? "" : `: ${version.reason.message}`;
    return { kind: "unknown", reason: `Version ${number} of ${name} is ${version.status}${why}` };
  }
  const proven = view.replicas.filter(({ state, proven: names }) => state.ready && names.has(version.engineName));
  const [best, ...others] = inOrderOfChoice(proven, version.engineName);
  if (best === undefined) return notProven(view, adapter, version);
  return { kind: "route", model: `${name}@${number}`, engineModel: version.engineName, version, replicas: [best, ...others] };
}

function notPromoted(name: string, adapter: AdapterState): RouteDecision {
  const coming = adapter.versions.findLast(({ status, promote }) => status === "desired" && promote === "auto");
  if (coming !== undefined) {
    const reason = `Version ${coming.version} of ${name} is being loaded and proven; no version is promoted yet.`;
    return { kind: "unavailable", reason, retryAfterMs: 2000 };
  }
  const waiting = adapter.versions.findLast(({ status }) => status === "desired");
  return {
    kind: "unknown",
    reason:
      waiting === undefined
        ? `${name} has no version that can be served.`
        : `No version of ${name} is promoted. Promote one, or ask for ${name}@${waiting.version}.`,
  };
}

function notProven(view: RoutingView, adapter: AdapterState, version: AdapterVersion): RouteDecision {
  const name = `${adapter.tenant}/${adapter.adapter}@${version.version}`;
  const ofEngine = view.replicas.filter(({ state, fresh }) => state.engine === adapter.engine && fresh);
  if (ofEngine.length === 0) {
    return { kind: "unavailable", reason: `${name} is proven nowhere: its engine has no replica now.`, retryAfterMs: 5000 };
  }
  const told = ofEngine.map(({ state }) => {
    const held = state.adapters.find(({ engineName }) => engineName === version.engineName);
    if (!state.ready) return `replica ${state.replica} is not ready`;
    if (held === undefined) return `replica ${state.replica} has not begun to load it`;
    return `replica ${state.replica}: ${held.state}${held.error === null ? "" : ` (${held.error.message})`}`;
  });
  return { kind: "unavailable", reason: `${name} is proven nowhere now: ${told.join("; ")}.`, retryAfterMs: 2000 };
}

/**
 * Fresh before silent, then least busy. Among equals each name has its own favourite, so that an adapter's requests
 * meet a warm cache; that choice moves little when replicas come and go (highest random weight).
 */
function inOrderOfChoice(replicas: readonly ReplicaView[], name: string): ReplicaView[] {
  if (replicas.length < 2) return [...replicas];
  const weight = new Map(replicas.map((replica) => [replica, hash(`${name} ${replica.state.replica}`)]));
  return replicas.toSorted(
    (a, b) => Number(b.fresh) - Number(a.fresh) || a.inFlight - b.inFlight || (weight.get(b) ?? 0) - (weight.get(a) ?? 0),
  );
}

/** FNV-1a, 32 bits, with a final mix so that names that differ in the last letter spread too. */
function hash(text: string): number {
  let h = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193);
  h = Math.imul(h ^ (h >>> 15), 0x2c1b3c6d);
  return (h ^ (h >>> 12)) >>> 0;
}

/** Engines a tenant may use. */
export const enginesFor = ({ engines }: Pick<RoutingView, "engines">, tenant: string): EngineRecord[] =>
  engines.filter(({ tenants }) => tenants?.includes(tenant) ?? true);

/** `<tenant>/<adapter>`, `<tenant>/<adapter>@<version>`, or OpenAI's `ft:` form. */
export function parseModel(model: string): { tenant: string; adapter: string; version?: number; base?: string } | undefined {
  const fineTuned = parseFineTunedModel(model);
  if (fineTuned !== undefined) return fineTuned;
  const [, tenant, adapter, version] = /^([a-z0-9-]+)\/([a-z0-9-]+)(?:@([1-9]\d{0,8}))?$/.exec(model) ?? [];
  if (tenant === undefined || adapter === undefined) return undefined;
  return version === undefined ? { tenant, adapter } : { tenant, adapter, version: Number(version) };
}
