/** Pure: decides which commands an Adapter's spec still requires, and what its status says. */
import {
  type AdapterResourceSpec,
  type AdapterState,
  type AdapterStatus,
  type AdapterVersion,
  crdGroup,
  defaultKeep,
  type KeepPolicy,
  moveKinds,
  type Problem,
} from "@loraline/contracts";
import { conditionsOf, type Milestone, type Said } from "./conditions.ts";
import { defined, lossOf } from "./decide-fine-tune.ts";

/** How many ready replicas should hold a version (`of`), and on how many of them it is proven. */
export interface Held {
  proven: number;
  of: number;
  /** Why a replica does not hold the version; of several replicas the first. */
  trouble: (Problem & { replica: string }) | undefined;
}

export interface ObservedAdapter {
  tenant: string;
  generation: number;
  spec: AdapterResourceSpec;
  before: AdapterStatus | undefined;
  /** The adapter's state in NATS; undefined: there is no such adapter. */
  state: AdapterState | undefined;
  held(version: AdapterVersion): Held;
  /** The problem of the adapter's engine, such as a base that is missing on the volume. */
  engineProblem?: Problem | undefined;
  /** Why the commands were refused that an edit of the spec caused. */
  refusals: { version?: Problem | undefined; placement?: Problem | undefined; keep?: Problem | undefined };
  /** Sequence of the newest command that placed the adapter, from any API. */
  lastPlaced?: number | undefined;
  /** Sequence of the newest command that set `keep`, from any API. */
  lastKept?: number | undefined;
  now: string;
}

/** A command to publish; `part` is the field of the spec that asks for it. */
export type Command =
  | { part: "version"; kind: "promote" | "rollback"; version: number; canary: AdapterResourceSpec["canary"] }
  | { part: "placement"; placement: NonNullable<AdapterResourceSpec["placement"]> }
  | { part: "keep"; keep: KeepPolicy };

export interface AdapterDecision {
  /** Its `asked` holds only after the commands are published; their sequences are added then. */
  status: AdapterStatus;
  commands: Command[];
  milestones: Milestone[];
  /** A command is not answered yet. The caller has to look again soon, because no watch reports a refusal. */
  unanswered: boolean;
}

const mostVersions = 20;
const yes = (reason: string, message: string): Said => ({ status: "True", reason, message });
const no = (reason: string, message: string): Said => ({ status: "False", reason, message });

export function decideAdapter(observed: ObservedAdapter): AdapterDecision {
  const { tenant, generation, before, state, held, now } = observed;
  if (state === undefined) {
    const none = no("ADAPTER_UNKNOWN", "there is no adapter of this name; it is there when a run of it is trained");
    const conditions = conditionsOf({ Ready: none, Converged: none }, { before: before?.conditions, generation, now });
    return { status: { observedGeneration: generation, conditions }, commands: [], milestones: [], unanswered: false };
  }
  const shown = [...state.versions].sort((a, b) => b.version - a.version).slice(0, mostVersions);
  const desired = state.versions.filter(({ status }) => status === "desired");
  const where = new Map(desired.map((version) => [version.version, held(version)]));
  const ratio = (version: number | undefined): string | undefined => {
    const found = version === undefined ? undefined : where.get(version);
    return found && `${found.proven}/${found.of}`;
  };
  const version = decideVersion(observed, state, where);
  const place = decidePlacement(observed, state);
  const keep = decideKeep(observed, state);
  const ready = readyOf(state, where, observed.engineProblem);
  const said = {
    Ready: ready,
    Converged: convergedOf(desired, where, observed.engineProblem),
    Promoted: version.said,
    Placed: place.said,
    Kept: keep.said,
  };
  const asked = defined({
    version: version.asked?.version,
    versionSeq: version.asked?.seq,
    placement: place.asked?.value,
    placementSeq: place.asked?.seq,
    keep: keep.asked?.value,
    keepSeq: keep.asked?.seq,
  });
  const status: AdapterStatus = defined({
    observedGeneration: generation,
    base: state.base,
    engine: state.engine,
    model: `${tenant}/${state.adapter}`,
    promoted: state.alias ?? undefined,
    canary: state.canary ? `${state.canary.version} ${state.canary.share}%` : undefined,
    converged: ratio(state.alias ?? desired.at(-1)?.version),
    versionCount: state.versions.length,
    versions: shown.map((one) =>
      defined({
        version: one.version,
        digest: one.digest,
        status: one.status,
        proven: ratio(one.version),
        runId: one.runId,
        heldOutLoss:
          one.evaluation === null ? undefined : { base: lossOf(one.evaluation.base_loss), adapter: lossOf(one.evaluation.adapter_loss) },
        reason: one.reason?.code ?? where.get(one.version)?.trouble?.code,
        message: one.reason?.message ?? where.get(one.version)?.trouble?.message ?? one.note ?? undefined,
      }),
    ),
    asked: Object.keys(asked).length === 0 ? undefined : asked,
    conditions: conditionsOf(said, { before: before?.conditions, generation, now }),
  });
  return {
    status,
    commands: [...version.commands, ...place.commands, ...keep.commands],
    milestones: milestonesOf(before, state, status),
    unanswered: version.unanswered || place.unanswered || keep.unanswered,
  };
}

function readyOf({ alias, adapter }: AdapterState, where: ReadonlyMap<number, Held>, engineProblem: Problem | undefined): Said {
  if (alias === null) return no("NOTHING_PROMOTED", `no version of ${adapter} is promoted`);
  const { proven, of } = where.get(alias) ?? { proven: 0, of: 0 };
  if (of === 0 && engineProblem !== undefined)
    return no(engineProblem.code, `version ${alias} is promoted, and on no replica: ${engineProblem.message}`);
  if (proven === 0) return no("NOT_PROVEN", `version ${alias} is promoted, and proven on none of ${of} ready replicas that should hold it`);
  return yes("Serving", `version ${alias} answers on ${proven} of ${of} replicas`);
}

function convergedOf(desired: readonly AdapterVersion[], where: ReadonlyMap<number, Held>, engineProblem: Problem | undefined): Said {
  const behind = desired.filter(({ version, unplaced }) => {
    const { proven = 0, of = 0 } = where.get(version) ?? {};
    return proven < of || of === 0 || unplaced;
  });
  const [first] = behind;
  if (desired.length === 0) return no("NOTHING_DESIRED", "no version is to be held");
  if (first === undefined)
    return yes(
      "Converged",
      `${desired.length} ${desired.length === 1 ? "version is" : "versions are"} proven on every replica that should hold them`,
    );
  const { proven = 0, of = 0, trouble } = where.get(first.version) ?? {};
  const at = `version ${first.version}`;
  if (first.unplaced) return no(first.unplaced.code, `${at}: ${first.unplaced.message}`);
  if (of === 0 && engineProblem !== undefined) return no(engineProblem.code, `${at}: ${engineProblem.message}`);
  if (of === 0) return no("NO_REPLICA", `${at}: no ready replica should hold it`);
  if (trouble !== undefined) return no(trouble.code, `${at} on replica ${trouble.replica}: ${trouble.message}`);
  return no("Converging", `${at} is proven on ${proven} of ${of} replicas`);
}

interface Part<Asked> {
  said: Said;
  asked: Asked | undefined;
  commands: Command[];
  unanswered: boolean;
}
const settled = <Asked>(said: Said, asked?: Asked): Part<Asked> => ({ said, asked, commands: [], unanswered: false });

/** The spec's version is asked for once. After that the newest command counts, from whichever API it comes. */
function decideVersion(
  { spec, before, refusals }: ObservedAdapter,
  state: AdapterState,
  where: ReadonlyMap<number, Held>,
): Part<{ version: number; seq: number | undefined }> {
  const want = spec.version;
  const { alias } = state;
  const nothing = no("NOTHING_PROMOTED", `no version of ${state.adapter} is promoted`);
  if (want === undefined) return settled(alias === null ? nothing : yes("Following", `version ${alias} is promoted`));

  const earlier = before?.asked?.version === want ? { version: want, seq: before.asked.versionSeq } : undefined;
  const isThere = alias === want && !state.canary;
  if (isThere) return settled(yes("Promoted", `version ${want} is promoted`), earlier ?? { version: want, seq: undefined });
  if (earlier === undefined) {
    const target = state.versions.find(({ version }) => version === want);
    // The version is asked for as soon as it can be promoted, so that the Adapter and the FineTune may be applied in any order.
    if (target === undefined) {
      const known = state.versions.map(({ version }) => version).join(", ") || "none";
      return settled(no("VERSION_UNKNOWN", `${state.adapter} has no version ${want}; it has ${known}. It is asked for when it is there.`));
    }
    if (target.status === "refused")
      return settled(no("VERSION_REFUSED", `version ${want} was refused: ${target.reason?.message ?? "no reason is known"}`));
    if (target.status === "deleted")
      return settled(no("VERSION_DELETED", `version ${want} cannot be promoted: ${target.reason?.message ?? "it was deleted"}`));
    const { proven = 0, of = 0 } = where.get(want) ?? {};
    // A retired version is proven nowhere, but the command makes it load again.
    if (proven === 0 && target.status !== "retired")
      return settled(
        no("VERSION_NOT_PROVEN", `version ${want} is proven on none of ${of} ready replicas; it is asked for when it is on one`),
      );
    const kind = alias !== null && want < alias && spec.canary === undefined ? "rollback" : "promote";
    return {
      said: no("Asked", `version ${want} is asked for`),
      asked: { version: want, seq: undefined },
      commands: [{ part: "version", kind, version: want, canary: spec.canary }],
      unanswered: true,
    };
  }
  if (refusals.version !== undefined) return settled(no(refusals.version.code, refusals.version.message), earlier);
  if (state.canary?.version === want)
    return settled(no("Canary", `version ${want} has ${state.canary.share} % of the users; the alias moves after the last step`), earlier);
  const followed = earlier.seq === undefined || state.history.some(({ command }) => command === earlier.seq);
  if (state.awaiting?.command === earlier.seq)
    return settled(no("Loading", `version ${want} was retired; it is loaded again, and promoted when it is proven`), earlier);
  if (!followed) return { ...settled(no("Asked", `version ${want} is asked for`), earlier), unanswered: true };
  const last = lastMoveOf(state);
  const why = last === undefined ? "" : ` (${last.reason}${last.by === null ? "" : `, by ${last.by}`})`;
  return settled(
    no(
      "MOVED_ELSEWHERE",
      `${alias === null ? "no version is promoted" : `version ${alias} is promoted`} since${why}; the last word counts, so version ${want} is not asked for again. Remove spec.version to follow, or remove it and set it again to ask again.`,
    ),
    earlier,
  );
}

/** Placement and `keep` are asked for once. After that the newest command counts, from whichever API it comes. */
function decideSetting(of: {
  /** Field of the spec. `want`: its value in the spec; `is`: its value in NATS. Both as texts that are equal if the values mean the same. */
  name: "placement" | "keep";
  want: string | undefined;
  is: string;
  /** The value that an earlier edit asked for. */
  before: { value: string; seq: number | undefined } | undefined;
  refusal: Problem | undefined;
  /** Sequence of the newest command about the field, from any API. */
  last: number | undefined;
  command: Command;
  /** The condition when no command is needed. */
  settledAs: (reason: string) => Said;
}): Part<{ value: string; seq: number | undefined }> {
  const { name, want, is, refusal, last } = of;
  if (want === undefined) return settled(of.settledAs("Following"));
  const earlier = of.before?.value === want ? of.before : undefined;
  if (is === want) return settled(of.settledAs(name === "placement" ? "Placed" : "Kept"), earlier ?? { value: want, seq: undefined });
  const said = no("Asked", `${name} is asked for`);
  if (earlier === undefined) return { said, asked: { value: want, seq: undefined }, commands: [of.command], unanswered: true };
  if (refusal !== undefined) return settled(no(refusal.code, refusal.message), earlier);
  if (earlier.seq === undefined || (last !== undefined && last > earlier.seq)) {
    const message = `${name} is ${is} since; the last word counts. Remove spec.${name} and set it again to ask again.`;
    return settled(no("MOVED_ELSEWHERE", message), earlier);
  }
  return { ...settled(said, earlier), unanswered: true };
}

function decidePlacement({ spec, before, refusals, lastPlaced }: ObservedAdapter, state: AdapterState) {
  const unplaced = state.versions.findLast(({ status, unplaced: problem }) => status === "desired" && problem)?.unplaced;
  const is = canonical(state.placement ?? { mode: "all" });
  const asked = before?.asked;
  return decideSetting({
    name: "placement",
    want: spec.placement && canonical(spec.placement),
    is,
    before: asked?.placement === undefined ? undefined : { value: asked.placement, seq: asked.placementSeq },
    refusal: refusals.placement,
    last: lastPlaced,
    command: { part: "placement", placement: spec.placement ?? { mode: "all" } },
    settledAs: (reason) => (unplaced ? no(unplaced.code, unplaced.message) : yes(reason, `placement is ${is}`)),
  });
}

function decideKeep({ spec, before, refusals, lastKept }: ObservedAdapter, state: AdapterState) {
  const is = String(state.keep ?? defaultKeep);
  const asked = before?.asked;
  const retired = state.versions.filter(({ status }) => status === "retired").length;
  return decideSetting({
    name: "keep",
    want: spec.keep === undefined ? undefined : String(spec.keep),
    is,
    before: asked?.keep === undefined ? undefined : { value: asked.keep, seq: asked.keepSeq },
    refusal: refusals.keep,
    last: lastKept,
    command: { part: "keep", keep: spec.keep ?? defaultKeep },
    settledAs: (reason) =>
      yes(reason, `keep is ${is}; ${retired} ${retired === 1 ? "version is" : "versions are"} retired, and loaded again when asked for`),
  });
}

const lastMoveOf = ({ history }: AdapterState) => history.findLast(({ kind }) => (moveKinds as readonly string[]).includes(kind));

const canonical = (placement: NonNullable<AdapterResourceSpec["placement"]>): string =>
  JSON.stringify(Object.fromEntries(Object.entries(placement).toSorted(([a], [b]) => (a < b ? -1 : 1))));

function milestonesOf(before: AdapterStatus | undefined, state: AdapterState, next: AdapterStatus): Milestone[] {
  const milestones: Milestone[] = [];
  const last = lastMoveOf(state);
  const move = last === undefined ? "" : ` (${last.reason})`;
  if (next.promoted !== undefined && before?.promoted !== next.promoted)
    milestones.push({
      type: "Normal",
      reason: "Promoted",
      message: `version ${next.promoted} is promoted${move}`,
      key: `promoted-${last?.n ?? next.promoted}`,
    });
  for (const { version, status, reason, message } of next.versions ?? []) {
    const known = before?.versions?.find((one) => one.version === version);
    if (status === "refused" && known?.status !== "refused")
      milestones.push({
        type: "Warning",
        reason: reason ?? "Refused",
        message: `version ${version}: ${message ?? ""}`,
        key: `refused-${version}`,
      });
  }
  const promoted = next.conditions?.find(({ type }) => type === "Promoted");
  const wasReason = before?.conditions?.find(({ type }) => type === "Promoted")?.reason;
  if (
    promoted?.status === "False" &&
    promoted.reason !== wasReason &&
    !["Asked", "Canary", "Loading", "NOTHING_PROMOTED"].includes(promoted.reason)
  )
    milestones.push({
      type: "Warning",
      reason: promoted.reason,
      message: promoted.message,
      key: `${promoted.reason}-${next.observedGeneration}-${state.alias}`,
    });
  return milestones;
}

/** Labels of the objects that the operator makes itself. */
export const madeBy = { "app.kubernetes.io/managed-by": "loraline-operator", "app.kubernetes.io/name": "loraline" } as const;
export const tenantLabel = `${crdGroup}/tenant`;
