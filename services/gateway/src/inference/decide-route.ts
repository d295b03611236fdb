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
import type { EngineRecord, RoutedAdapter, RoutedVersion } from "@loraline/contracts";
import { type CheckpointName, parseCheckpointModel, parseFineTunedModel } from "../openai-ids.ts";
import { type Candidates, decideReplicas, hash, podOf, type ReplicaView, retryAfterOf } from "./decide-replicas.ts";

/** What there is, found by name: nothing here looks at everything, however much there is. */
export interface RoutingView {
  readonly engines: readonly EngineRecord[];
  engine(name: string): EngineRecord | undefined;
  enginesOf(base: string): readonly EngineRecord[];
  adapter(named: { tenant: string; adapter: string }): RoutedAdapter | undefined;
  adaptersOf(tenant: string): Iterable<RoutedAdapter>;
  /** Desired versions of all tenants on an engine. */
  versionsOn(engine: string): VersionCounts;
  replicasOf(engine: string): Candidates;
  /** Replicas that have this LoRA name proven. */
  provenOn(loraName: string): Candidates;
  /** For benchmarks: replicas are chosen by these numbers from 0 to 1 instead of by affinity and load. */
  readonly random?: (() => number) | undefined;
}

export interface VersionCounts {
  readonly count: number;
  /** Those that are not placed as asked. */
  readonly unplaced: number;
  /** 0: there is none. */
  readonly highestRank: number;
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
      version: RoutedVersion | null;
      /** Best first, never empty; of many the few best. */
      replicas: readonly [ReplicaView, ...ReplicaView[]];
      /** Absent: the version stays loaded whoever asks for it. */
      named?: NamedVersion;
    }
  | {
      kind: "unknown";
      reason: string | null;
      /** The request names a checkpoint that is no version yet; the run, which is not known here, says whether there is one. */
      checkpoint?: CheckpointName;
    }
  | {
      kind: "unavailable";
      /** `version_loading`: it was retired, and is loaded because somebody asks for it. */
      code: "model_not_ready" | "version_loading";
      reason: string;
      retryAfterMs: number;
      named?: NamedVersion;
      /** Engines without a ready replica that may be scaled to zero: it is worth waiting for one of them. Empty: none. */
      asleep: readonly EngineRecord[];
      /** What the request is counted under. */
      counted: CountedModel;
    };

/** A model in usage and metrics. */
export interface CountedModel {
  /** A base, `<tenant>/<adapter>@<version>`, or `<tenant>/<adapter>` where no version was chosen. */
  model: string;
  base: string;
  adapter: string | null;
  version: number | null;
}

/** A version that the request names; it stays loaded because somebody does. */
export interface NamedVersion {
  adapter: string;
  version: number;
  /** Until when it stays loaded for that; null: nobody has named it lately. */
  wanted: RoutedVersion["wanted"];
}

/** A request whose model name was understood, and that a replica can answer. */
export type Routed = Extract<RouteDecision, { kind: "route" }>;

const unknown: RouteDecision = { kind: "unknown", reason: null };

export function decideRoute(view: RoutingView, { tenant, model, sticky }: RouteRequest): RouteDecision {
  const engines = view.enginesOf(model).filter((engine) => isOpenTo(engine, tenant));
  if (engines.length > 0) {
    const groups = engines.map(({ engine }) => view.replicasOf(engine));
    const [best, ...others] = decideReplicas(groups, model, {
      random: view.random,
      // While an engine gets another base, some replicas still have the one before.
      fits: ({ state }) => state.base === model,
    });
    if (best === undefined) {
      return {
        kind: "unavailable",
        code: "model_not_ready",
        reason: `No replica of the base "${model}" is ready.`,
        retryAfterMs: Math.min(...groups.map(({ load }) => retryAfterOf(load))),
        asleep: asleepOf(view, engines),
        counted: { model, base: model, adapter: null, version: null },
      };
    }
    return { kind: "route", model, engineModel: model, version: null, replicas: [best, ...others] };
  }
  const named = parseModel(model);
  if (named?.tenant !== tenant) return unknown;
  const adapter = view.adapter(named);
  const checkpoint = named.checkpoint === undefined ? undefined : versionOfCheckpoint(adapter, named.checkpoint);
  if (checkpoint === undefined && named.checkpoint !== undefined) return { kind: "unknown", reason: null, checkpoint: named };
  if (adapter === undefined) return unknown;
  if (named.base !== undefined && named.base !== adapter.base) return unknown;
  const version = named.checkpoint === undefined ? named.version : checkpoint?.version;
  return decideVersion(view, adapter, version ?? aliasFor(view, adapter, sticky), version !== undefined);
}

/** The version that a checkpoint has become; undefined: nobody has asked for it yet. */
export const versionOfCheckpoint = (
  adapter: Pick<RoutedAdapter, "versions"> | undefined,
  { runId, step }: CheckpointName["checkpoint"],
): RoutedVersion | undefined =>
  adapter?.versions.find(({ checkpoint }) => checkpoint && checkpoint.runId === runId && checkpoint.step === step);

function decideVersion(view: RoutingView, adapter: RoutedAdapter, number: number | null, isNamed: boolean): RouteDecision {
  const name = `${adapter.tenant}/${adapter.adapter}`;
  if (number === null) return notPromoted(view, name, adapter);
  const version = adapter.versions.find((candidate) => candidate.version === number);
  const counted = { model: `${name}@${number}`, base: adapter.base, adapter: adapter.adapter, version: number };
  if (version === undefined) return unknown;
  // Users of the alias keep their version loaded without asking.
  const named =
    !isNamed || number === adapter.alias ? {} : { named: { adapter: adapter.adapter, version: number, wanted: version.wanted ?? null } };
  const engine = view.engine(adapter.engine);
  const asleep = (): EngineRecord[] => (engine === undefined ? [] : asleepOf(view, [engine]));
  if (version.status === "retired") {
    const reason = `Version ${number} of ${name} was retired to make room for newer ones. It is being loaded again; ask again in a moment.`;
    return { kind: "unavailable", code: "version_loading", reason, retryAfterMs: 2000, ...named, asleep: asleep(), counted };
  }
  if (version.status !== "desired") {
    const why = version.reason === null ? "" : `: ${version.reason.message}`;
    return { kind: "unknown", reason: `Version ${number} of ${name} is ${version.status}${why}` };
  }
  const [best, ...others] = decideReplicas([view.provenOn(version.engineName)], version.engineName, {
    random: view.random,
    slots: engine?.maxLoras,
  });
  if (best === undefined) {
    const why = notProven(view, adapter, version);
    if (version.servedAt === null || !version.wanted)
      return { kind: "unavailable", code: "model_not_ready", ...why, ...named, asleep: asleep(), counted };
    return {
      kind: "unavailable",
      code: "version_loading",
      ...why,
      reason: `It is being loaded again: ${why.reason}`,
      ...named,
      asleep: asleep(),
      counted,
    };
  }
  return { kind: "route", model: `${name}@${number}`, engineModel: version.engineName, version, replicas: [best, ...others], ...named };
}

/** 2: a replica that was heard of lately has it proven. 1: one that fell silent has. 0: none has. */
function reachOf(view: RoutingView, { engineName }: RoutedVersion): number {
  const { replicas } = view.provenOn(engineName);
  if (replicas.some(({ state, fresh }) => state.ready && fresh)) return 2;
  return replicas.some(({ state }) => state.ready) ? 1 : 0;
}

/**
 * The version that the alias means for this sticky key. A canary that no replica has proven, or only silent ones while the promoted
 * version is better off, takes nobody: the promoted version is the better answer than none.
 */
function aliasFor(view: RoutingView, { alias, canary, versions }: RoutedAdapter, sticky: RouteRequest["sticky"]): number | null {
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
  const { messages, prompt, input } = body;
  const isUsers = (message: unknown): boolean => (message as { role?: unknown } | null)?.role === "user";
  const beginning: unknown = Array.isArray(messages) ? (messages.find(isUsers) ?? messages[0]) : (prompt ?? input);
  return `${by} ${(JSON.stringify(beginning) ?? "").slice(0, beginningLength)}`;
}

function notPromoted(view: RoutingView, name: string, adapter: RoutedAdapter): RouteDecision {
  // Where nothing is promoted yet, there is nothing a canary could be compared with: it is promoted at once.
  const coming = adapter.versions.findLast(({ status, promote }) => status === "desired" && promote !== "manual");
  if (coming !== undefined) {
    const reason = `Version ${coming.version} of ${name} is being loaded and proven; no version is promoted yet.`;
    const counted = { model: name, base: adapter.base, adapter: adapter.adapter, version: null };
    const engine = view.engine(adapter.engine);
    const asleep = engine === undefined ? [] : asleepOf(view, [engine]);
    return { kind: "unavailable", code: "model_not_ready", reason, retryAfterMs: 2000, asleep, counted };
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

/** Reasons that a message lists; a hundred replicas seldom have a hundred different ones. */
const mostReasons = 10;

function notProven(view: RoutingView, adapter: RoutedAdapter, version: RoutedVersion): { reason: string; retryAfterMs: number } {
  const name = `${adapter.tenant}/${adapter.adapter}@${version.version}`;
  const { replicas: ofEngine, load } = view.replicasOf(adapter.engine);
  const retryAfterMs = load.replicas === 0 ? retryAfterOf(load) : 2000;
  if (!ofEngine.some(({ fresh }) => fresh)) {
    return { reason: `${name} is proven nowhere: its engine has no replica now.`, retryAfterMs: retryAfterOf(load) };
  }
  const { replicas: placed, unplaced } = version;
  if (placed?.length === 0 && unplaced) return { reason: `${name} is not loaded: ${unplaced.message}`, retryAfterMs: 30_000 };
  if (placed?.length === 0) return { reason: `${name} is about to be loaded.`, retryAfterMs: 2000 };
  const reasons: string[] = [];
  for (const { state, held: heldOf, fresh } of ofEngine) {
    if (!fresh) continue;
    const held = heldOf(version.engineName);
    if (placed && !placed.includes(state.replica) && held === undefined) continue;
    if (reasons.length === mostReasons) {
      reasons.push("and so on");
      break;
    }
    if (!state.ready) reasons.push(`replica ${podOf(state)} is not ready`);
    else if (held === undefined) reasons.push(`replica ${podOf(state)} has not begun to load it`);
    else reasons.push(`replica ${podOf(state)}: ${held.state}${held.error === null ? "" : ` (${held.error.message})`}`);
  }
  const why = reasons.length === 0 ? "none of the replicas that should hold it is there" : reasons.join("; ");
  return { reason: `${name} is proven nowhere now: ${why}.`, retryAfterMs };
}

const asleepOf = (view: RoutingView, engines: readonly EngineRecord[]): EngineRecord[] =>
  engines.filter(({ engine, wake }) => wake && view.replicasOf(engine).load.replicas === 0);

/** Engines a tenant may use. */
export const enginesFor = ({ engines }: Pick<RoutingView, "engines">, tenant: string): EngineRecord[] =>
  engines.filter((engine) => isOpenTo(engine, tenant));

const isOpenTo = ({ tenants }: EngineRecord, tenant: string): boolean => tenants?.includes(tenant) ?? true;

interface ModelName {
  tenant: string;
  adapter: string;
  version?: number;
  base?: string;
}

/** `<tenant>/<adapter>`, `<tenant>/<adapter>@<version>`, or OpenAI's `ft:` forms. */
export function parseModel(model: string): (ModelName & { checkpoint?: never }) | CheckpointName | undefined {
  const fineTuned = parseFineTunedModel(model) ?? parseCheckpointModel(model);
  if (fineTuned !== undefined) return fineTuned;
  const [, tenant, adapter, version] = /^([a-z0-9-]+)\/([a-z0-9-]+)(?:@([1-9]\d{0,8}))?$/.exec(model) ?? [];
  if (tenant === undefined || adapter === undefined) return undefined;
  return version === undefined ? { tenant, adapter } : { tenant, adapter, version: Number(version) };
}
