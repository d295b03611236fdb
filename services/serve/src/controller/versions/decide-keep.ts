/**
 * Pure: which versions of an adapter stay loaded on replicas. Every function may be applied again to its own result.
 *
 *   served ── older than the newest `keep` ──► retired ── asked for by name, promoted ──► loaded and proven again
 *     │                                         │   ▲                                           │
 *     └────────────► deleted ◄──────────────────┘   └── not asked for during `wantedForMs` ─────┘
 */
import { type AdapterState, type AdapterVersion, defaultKeep, type Problem } from "@loraline/contracts";
import { type Cause, isMove, withLine } from "../aliases/history-lines.ts";

/** How long a version stays loaded after it was last asked for by its name. */
export const wantedForMs = 15 * 60_000;

/** How many retired versions, and how many refused or deleted ones, stay in the adapter's entry, so that it does not grow without end. */
export const retiredKept = 300;
export const overKept = 100;

const isServed = ({ status, servedAt }: AdapterVersion): boolean => (status === "desired" || status === "retired") && servedAt !== null;

/** The version before the promoted one; it may be retired. A checkpoint only if it was promoted itself: others were just asked for. */
export const rollbackTarget = ({ alias, versions, history }: AdapterState): number | undefined => {
  if (alias === null) return undefined;
  const wasPromoted = (version: number): boolean => history.some((line) => isMove(line) && line.to === version);
  const isBefore = (known: AdapterVersion): boolean =>
    known.version < alias && isServed(known) && (!known.checkpoint || wasPromoted(known.version));
  return versions.findLast(isBefore)?.version;
};

/**
 * Retires and recalls versions, so that exactly these are loaded: the newest served ones, as many as `keep` says; the promoted version,
 * the target of a rollback, the canary and the version that a move waits for; versions that were asked for by name lately; and all
 * versions that have not been served yet, because their runs wait for that. Checkpoints do not count among the newest.
 *
 * @param at - ISO 8601.
 * @param because - the version that has just been served, and so may have caused an older one to be retired.
 */
export function applyKeep(state: AdapterState, at: string, because?: number): AdapterState {
  const keep = state.keep ?? defaultKeep;
  const served = state.versions.filter(isServed);
  const published = served.filter(({ checkpoint }) => !checkpoint);
  const newest = new Set((keep === "all" ? published : published.slice(-keep)).map(({ version }) => version));
  const special = new Set([state.alias, rollbackTarget(state), state.canary?.version, state.awaiting?.version]);
  let next = state;
  for (const known of served) {
    const { version, status } = known;
    const isWanted = known.wanted ? known.wanted.until > at : false;
    if (known.wanted && !isWanted) next = withVersion(next, version, { wanted: null });
    if (status === "retired" && newest.has(version)) {
      next = load(next, version, { by: null, reason: keptAs(keep), at });
    } else if (status === "desired" && !newest.has(version) && !special.has(version) && !isWanted) {
      next = withVersion(next, version, { status: "retired", wanted: null, unplaced: null });
      const reason = known.wanted ? `nobody has asked for it since ${known.wanted.at.slice(0, 19)}Z, and ${keptAs(keep)}` : keptAs(keep);
      next = withLine(next, {
        from: null,
        to: version,
        kind: "retired",
        by: null,
        reason,
        at,
        ...(because === undefined ? {} : { because }),
      });
    }
  }
  return forgetOld(next);
}

const keptAs = (keep: NonNullable<AdapterState["keep"]>): string =>
  keep === "all"
    ? "all versions are kept (keep: all)"
    : `the ${keep} newest ${keep === 1 ? "version is" : "versions are"} kept (keep: ${keep})`;

/**
 * Notes that a version was asked for by its name: it is loaded again if it was retired, and stays loaded for a while. Nothing changes
 * for a version that was never served, or that was asked for a moment ago.
 */
export function wantVersion(state: AdapterState, version: number, cause: Cause, forMs = wantedForMs): AdapterState {
  const known = state.versions.find((each) => each.version === version);
  if (known === undefined || !isServed(known)) return state;
  const now = Date.parse(cause.at);
  // Many gateways tell of the same version, and each write of the entry is sent to every replica, so few are made.
  if (known.status === "desired" && known.wanted && !isHalfOver(known.wanted, now)) return state;
  const wanted = { at: cause.at, until: new Date(now + forMs).toISOString() };
  return withVersion(known.status === "retired" ? load(state, version, cause) : state, version, { wanted });
}

/** Whether half of the time has passed, so that `wanted` should be renewed. */
const isHalfOver = ({ at, until }: NonNullable<AdapterVersion["wanted"]>, now: number): boolean =>
  now >= (Date.parse(at) + Date.parse(until)) / 2;

export type DeleteDecision = { kind: "delete"; state: AdapterState } | { kind: "nothing" } | { kind: "reject"; problem: Problem };

/** Decides whether a version may be deleted for good: not while it is promoted, the canary, or still being loaded for its run. */
export function decideDelete(
  state: AdapterState | undefined,
  { name, version, by, at, command }: { name: string; version: number; by: string | null; at: string; command: number },
): DeleteDecision {
  const reject = (code: string, message: string, param: string | null = "version"): DeleteDecision => ({
    kind: "reject",
    problem: { code, message, param },
  });
  if (state === undefined || state.versions.length === 0) return reject("ADAPTER_UNKNOWN", `there is no adapter "${name}".`, null);
  const known = state.versions.find((each) => each.version === version);
  if (known === undefined) {
    const all = state.versions.map((each) => each.version).join(", ");
    return reject("VERSION_UNKNOWN", `"${name}" has no version ${version}; it has ${all}.`);
  }
  if (known.status === "deleted") return { kind: "nothing" };
  if (version === state.alias) {
    return reject(
      "VERSION_PROMOTED",
      `version ${version} of "${name}" is promoted: whoever asks for ${name} gets it. Promote another version first, then delete this one.`,
    );
  }
  if (version === state.canary?.version) {
    return reject(
      "VERSION_IN_CANARY",
      `version ${version} of "${name}" is the canary: ${state.canary.share} % of the users get it. End the canary first (roll back ${name}), then delete this one.`,
    );
  }
  if (known.status === "desired" && known.servedAt === null) {
    return reject(
      "VERSION_NOT_SERVED",
      `version ${version} of "${name}" is still being loaded for run ${known.runId}. Cancel the run, or wait until it is served, then delete the version.`,
    );
  }
  const reason = { code: "VERSION_DELETED", message: `it was deleted on ${at.slice(0, 10)}${by === null ? "" : ` by ${by}`}.` };
  const gone = withVersion(state, version, { status: "deleted", reason, wanted: null, unplaced: null });
  const told = withLine(gone, { from: null, to: version, kind: "deleted", by, reason: "deletion requested", at, command });
  const left =
    state.awaiting?.version === version
      ? dropAwaiting(told, { code: "VERSION_DELETED", by, reason: `version ${version} was deleted meanwhile`, at })
      : told;
  return { kind: "delete", state: applyKeep(left, at) };
}

/** Gives up a move of the alias that is waiting for its version. Without such a move nothing changes. */
export function dropAwaiting(state: AdapterState, { code, ...cause }: Cause & { code?: string }): AdapterState {
  const { awaiting } = state;
  if (!awaiting) return state;
  const line = { from: state.alias, to: awaiting.version, kind: "not-moved" as const, ...(code === undefined ? {} : { code }), ...cause };
  return withLine({ ...state, awaiting: null }, line);
}

/** When the next `wanted` of a version ends, in milliseconds since the epoch; undefined: never. */
export function nextLapse({ versions }: AdapterState): number | undefined {
  let next: number | undefined;
  for (const { wanted, status } of versions) {
    if (status !== "desired" || !wanted) continue;
    const until = Date.parse(wanted.until);
    next = Math.min(next ?? until, until);
  }
  return next;
}

/** Marks a version to be loaded, at first on no replica: placement then chooses replicas that have room. */
function load(state: AdapterState, version: number, { command: _command, ...cause }: Cause): AdapterState {
  const next = withVersion(state, version, { status: "desired", replicas: [], unplaced: null });
  return withLine(next, { from: null, to: version, kind: "recalled", ...cause });
}

const withVersion = (state: AdapterState, version: number, over: Partial<AdapterVersion>): AdapterState => ({
  ...state,
  versions: state.versions.map((known) => (known.version === version ? { ...known, ...over } : known)),
});

function forgetOld(state: AdapterState): AdapterState {
  const retired = state.versions.filter(({ status }) => status === "retired");
  // A deleted version stays until its bytes are erased: this entry says that nobody needs them.
  const over = state.versions.filter(({ status, erased }) => status === "refused" || (status === "deleted" && erased === true));
  const forgotten = new Set([...retired.slice(0, -retiredKept), ...over.slice(0, -overKept)]);
  return forgotten.size === 0 ? state : { ...state, versions: state.versions.filter((known) => !forgotten.has(known)) };
}
