/**
 * Pure: which replica answers for a model name.
 *
 *   name ──► base ─────────────────────────────────────────────► replicas of its engines, ready
 *     │
 *     ├────► alias ──► canary's share, by sticky key ──► version ──► LoRA name ───► replicas that have it proven, ready
 *     │                                                    ▲
 *     └────► pinned version ───────────────────────────────┘
 *
 * A request keeps the version that was decided when it began.
 */
import {
  adapterKey,
  type AdapterState,
  type AdapterVersion,
  type EngineRecord,
  fnv1a,
  type ReplicaAdapter,
  type ReplicaReport,
} from "@loraline/contracts";
import { parseFineTunedModel } from "../openai-ids.ts";

export interface ReplicaView {
  state: ReplicaReport;
  /** LoRA names that are proven in the replica's present incarnation. */
  proven: ReadonlySet<string>;
  /** What the replica reports of this LoRA name; undefined: it has not begun to load it. */
  held(loraName: string): ReplicaAdapter | undefined;
  /** Its heartbeat is recent. A replica that fell silent is asked last, not never: the silence may be the bus's. */
  fresh: boolean;
  /** Requests of this gateway that the replica is answering. */
  inFlight: number;
}

export interface RoutingView {
  engines: readonly EngineRecord[];
  /** Key `<tenant>.<adapter>`. */
  adapters: ReadonlyMap<string, AdapterState>;
  replicas: readonly ReplicaView[];
  /** For benchmarks: replicas are chosen by these numbers from 0 to 1 instead of by affinity and load. */
  random?: (() => number) | undefined;
}

export interface RouteRequest {
  tenant: string;
  model: string;
  /**
   * Key of the user, who should see only one version while a canary is under way. Called only then. Absent: the promoted version.
   * @see stickyKeyOf
   */
  sticky?: (() => string) | undefined;
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
      /** Absent: the version stays loaded whoever asks for it. */
      named?: NamedVersion;
    }
  | { kind: "unknown"; reason: string | null }
  | {
      kind: "unavailable";
      /** `version_loading`: it was retired, and is loaded because somebody asks for it. */
      code: "model_not_ready" | "version_loading";
      reason: string;
      retryAfterMs: number;
      named?: NamedVersion;
    };

/** A version that the request names; it stays loaded because somebody does. */
export interface NamedVersion {
  adapter: string;
  version: number;
  /** Until when it stays loaded for that; null: nobody has named it lately. */
  wanted: AdapterVersion["wanted"];
}

/** A request whose model name was understood, and that a replica can answer. */
export type Routed = Extract<RouteDecision, { kind: "route" }>;

const unknown: RouteDecision = { kind: "unknown", reason: null };

export function decideRoute(view: RoutingView, { tenant, model, sticky }: RouteRequest): RouteDecision {
  const engines = enginesFor(view, tenant).filter(({ base }) => base.name === model);
  if (engines.length > 0) {
    const names = new Set(engines.map(({ engine }) => engine));
    const ready = view.replicas.filter(({ state }) => state.base === model && names.has(state.engine) && state.ready);
    const [best, ...others] = inOrderOfChoice(ready, model, view.random);
    if (best === undefined) {
      return { kind: "unavailable", code: "model_not_ready", reason: `No replica of the base "${model}" is ready.`, retryAfterMs: 5000 };
    }
    return { kind: "route", model, engineModel: model, version: null, replicas: [best, ...others] };
  }
  const named = parseModel(model);
  const adapter = named?.tenant === tenant ? view.adapters.get(adapterKey({ tenant, adapter: named.adapter })) : undefined;
  if (named === undefined || adapter === undefined) return unknown;
  if (named.base !== undefined && named.base !== adapter.base) return unknown;
  return decideVersion(view, adapter, named.version ?? aliasFor(view, adapter, sticky), named.version !== undefined);
}

function decideVersion(view: RoutingView, adapter: AdapterState, number: number | null, isNamed: boolean): RouteDecision {
  const name = `${adapter.tenant}/${adapter.adapter}`;
  if (number === null) return notPromoted(name, adapter);
  const version = adapter.versions.find((candidate) => candidate.version === number);
  if (version === undefined) return unknown;
  // Users of the alias keep their version loaded without asking.
  const named =
    !isNamed || number === adapter.alias ? {} : { named: { adapter: adapter.adapter, version: number, wanted: version.wanted ?? null } };
  if (version.status === "retired") {
    const reason = `Version ${number} of ${name} was retired to make room for newer ones. It is being loaded again; ask again in a moment.`;
    return { kind: "unavailable", code: "version_loading", reason, retryAfterMs: 2000, ...named };
  }
  if (version.status !== "desired") {
    const why = version.reason === null ? "" : `: ${version.reason.message}`;
    return { kind: "unknown", reason: `Version ${number} of ${name} is ${version.status}${why}` };
  }
  const [best, ...others] = inOrderOfChoice(provenOn(view, version), version.engineName, view.random, slotsOf(view, adapter));
  if (best === undefined) {
    const why = notProven(view, adapter, version);
    if (version.servedAt === null || !version.wanted) return { kind: "unavailable", code: "model_not_ready", ...why, ...named };
    return { kind: "unavailable", code: "version_loading", ...why, reason: `It is being loaded again: ${why.reason}`, ...named };
  }
  return { kind: "route", model: `${name}@${number}`, engineModel: version.engineName, version, replicas: [best, ...others], ...named };
}

const provenOn = ({ replicas }: RoutingView, { engineName: loraName }: AdapterVersion): ReplicaView[] =>
  replicas.filter(({ state, proven: names }) => state.ready && names.has(loraName));

/** 2: a replica that was heard of lately has it proven. 1: one that fell silent has. */
const reachOf = (view: RoutingView, version: AdapterVersion): number =>
  provenOn(view, version).reduce((best, { fresh }) => Math.max(best, fresh ? 2 : 1), 0);

/**
 * The version that the alias means for this sticky key. A canary that no replica has proven, or only silent ones while the promoted
 * version is better off, takes nobody: the promoted version is the better answer than none.
 */
function aliasFor(view: RoutingView, { alias, canary, versions }: AdapterState, sticky: RouteRequest["sticky"]): number | null {
  if (!canary || canary.from !== alias || sticky === undefined) return alias;
  const version = versions.find((candidate) => candidate.version === canary.version && candidate.status === "desired");
  if (version === undefined || positionOf(sticky(), version.engineName) >= canary.share) return alias;
  const reach = reachOf(view, version);
  const promoted = versions.find((candidate) => candidate.version === alias);
  return reach > 0 && (promoted === undefined || reach >= reachOf(view, promoted)) ? version.version : alias;
}

/**
 * Where a sticky key stands, from 0 to 100: a canary has those below its share, so a growing share only adds. Each version
 * shuffles anew, or the same users would be the first to meet every new version.
 */
const positionOf = (sticky: string, loraName: string): number => (hash(`${loraName} ${sticky}`) / 2 ** 32) * 100;

/** Characters of a conversation's beginning that tell it from others. */
const beginningLength = 512;

/**
 * Who should see one version while a canary is under way: what the header `x-loraline-sticky` says, else the body's `user` or
 * `safety_identifier`, else the API key together with the conversation's beginning, for the turns of one conversation repeat it.
 * (The key alone would put all users of one application on the same version.)
 */
export function stickyKeyOf({ header, by, body }: { header?: unknown; by: string; body: Readonly<Record<string, unknown>> }): string {
  for (const given of [header, body["user"], body["safety_identifier"]]) if (typeof given === "string" && given !== "") return given;
  const { messages, prompt } = body;
  const isUsers = (message: unknown): boolean => (message as { role?: unknown } | null)?.role === "user";
  const beginning: unknown = Array.isArray(messages) ? (messages.find(isUsers) ?? messages[0]) : prompt;
  return `${by} ${(JSON.stringify(beginning) ?? "").slice(0, beginningLength)}`;
}

function notPromoted(name: string, adapter: AdapterState): RouteDecision {
  // Where nothing is promoted yet, there is nothing a canary could be compared with: it is promoted at once.
  const coming = adapter.versions.findLast(({ status, promote }) => status === "desired" && promote !== "manual");
  if (coming !== undefined) {
    const reason = `Version ${coming.version} of ${name} is being loaded and proven; no version is promoted yet.`;
    return { kind: "unavailable", code: "model_not_ready", reason, retryAfterMs: 2000 };
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

function notProven(view: RoutingView, adapter: AdapterState, version: AdapterVersion): { reason: string; retryAfterMs: number } {
  const name = `${adapter.tenant}/${adapter.adapter}@${version.version}`;
  const ofEngine = view.replicas.filter(({ state, fresh }) => state.engine === adapter.engine && fresh);
  if (ofEngine.length === 0) {
    return { reason: `${name} is proven nowhere: its engine has no replica now.`, retryAfterMs: 5000 };
  }
  const { replicas: placed, unplaced } = version;
  if (placed?.length === 0 && unplaced) return { reason: `${name} is not loaded: ${unplaced.message}`, retryAfterMs: 30_000 };
  if (placed?.length === 0) return { reason: `${name} is about to be loaded.`, retryAfterMs: 2000 };
  const reasons = ofEngine.flatMap(({ state, held: heldOf }) => {
    const held = heldOf(version.engineName);
    if (placed && !placed.includes(state.replica) && held === undefined) return [];
    if (!state.ready) return `replica ${state.replica} is not ready`;
    if (held === undefined) return `replica ${state.replica} has not begun to load it`;
    return `replica ${state.replica}: ${held.state}${held.error === null ? "" : ` (${held.error.message})`}`;
  });
  const why = reasons.length === 0 ? "none of the replicas that should hold it is there" : reasons.join("; ");
  return { reason: `${name} is proven nowhere now: ${why}.`, retryAfterMs: 2000 };
}

/** A name's favourite is passed over while its load is above this many times the replicas' average. */
const loadBound = 1.25;
/**
 * And some more where replicas hold more adapters than they have slots: an engine answers a few requests at once as fast as one, but
 * an adapter that takes another one's slot costs both.
 */
const crowdedSlack = 4;

/**
 * Rendezvous hashing with bounded loads: each name has its own order of replicas, which moves little when replicas come and go,
 * and takes the first whose load is bearable. So an adapter's requests meet a replica that has it in the GPU's memory and
 * its prefixes in the cache, and many adapters do not push each other out everywhere. Fresh replicas before silent ones.
 */
function inOrderOfChoice(
  replicas: readonly ReplicaView[],
  name: string,
  random: (() => number) | undefined,
  slots = Number.POSITIVE_INFINITY,
): ReplicaView[] {
  if (replicas.length < 2) return [...replicas];
  const ranked = replicas.map((replica) => ({ replica, weight: random?.() ?? hash(`${name} ${replica.state.replica}`) }));
  const fresh = ranked.filter(({ replica }) => replica.fresh);
  const counted = fresh.length > 0 ? fresh : ranked;
  const load = counted.reduce((sum, { replica }) => sum + replica.inFlight, 1);
  const slack = counted.some(({ replica }) => replica.proven.size > slots) ? crowdedSlack : 0;
  const bound = random === undefined ? Math.ceil((loadBound * load) / counted.length) + slack : Number.POSITIVE_INFINITY;
  const excess = ({ inFlight }: ReplicaView): number => Math.max(0, inFlight + 1 - bound);
  return ranked
    .toSorted((a, b) => Number(b.replica.fresh) - Number(a.replica.fresh) || excess(a.replica) - excess(b.replica) || b.weight - a.weight)
    .map(({ replica }) => replica);
}

/** Adapters that a replica of the adapter's engine computes with at once. */
const slotsOf = ({ engines }: RoutingView, adapter: AdapterState): number | undefined =>
  engines.find(({ engine }) => engine === adapter.engine)?.maxLoras;

/** 32 bits; mixed, so that names that differ in the last letter spread too. */
function hash(text: string): number {
  let h = fnv1a(text);
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
