/** Pure: which of the replicas that could answer are asked, and in which order. The cost does not grow with the number of replicas. */
import { fnv1a, type ReplicaAdapter, type ReplicaReport } from "@loraline/contracts";

/** What routing needs to know of an adapter on a replica. */
export type HeldOnReplica = Pick<ReplicaAdapter, "engineName" | "state" | "error">;

export interface ReplicaView {
  readonly state: ReplicaReport;
  /** LoRA names that are proven in the replica's present incarnation. */
  readonly proven: Pick<ReadonlySet<string>, "has" | "size">;
  /** What the replica reports of this LoRA name; undefined: it has not begun to load it. */
  held(loraName: string): HeldOnReplica | undefined;
  /** Its heartbeat is recent. A replica that fell silent is asked last, not never: the silence may be the bus's. */
  readonly fresh: boolean;
  /** Requests of this gateway that the replica is answering. */
  inFlight: number;
}

/** Replicas that could answer for one name. */
export interface Candidates {
  /** All of them, whether they are ready or not; no order. */
  readonly replicas: readonly ReplicaView[];
  /** Of many: the few that the name prefers, by `preferenceOf`. */
  favourites(name: string): readonly ReplicaView[];
  /** Of many: a few, other ones at each call. */
  others(): readonly ReplicaView[];
  /** Of many: requests in flight on so many ready replicas of the engine, which stand for those of the candidates. */
  readonly load: EngineLoad;
}

export interface EngineLoad {
  /** In flight on all of the engine's replicas. */
  readonly requests: number;
  /** Replicas that are ready. */
  readonly replicas: number;
  /** For how long none has been ready, or, of an engine that was scaled to zero, for how long somebody has asked for it; undefined: one is. */
  readonly awayMs?: number | undefined;
  /** How long it took the last time. */
  readonly lastAwayMs?: number | undefined;
}

/** What an outage is expected to take before one was seen. */
const expectedAwayMs = 30_000;
/** Clients of OpenAI's heed what is said up to a minute. */
const longestRetryMs = 60_000;
const shortestRetryMs = 5000;

/** When an engine without a ready replica is expected to have one again: as long after it went as it took the last time. */
export function retryAfterOf({ awayMs = 0, lastAwayMs = expectedAwayMs }: Pick<EngineLoad, "awayMs" | "lastAwayMs">): number {
  return Math.min(longestRetryMs, Math.max(shortestRetryMs, lastAwayMs - awayMs));
}

/** A replica as people find it: its pod's name where it says one. */
export const podOf = ({ pod, replica }: Pick<ReplicaReport, "pod" | "replica">): string => pod ?? replica;

/** Up to so many replicas are all compared. Of more than that, half of these are favourites, and half are others. */
export const fewReplicas = 16;

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
 *
 * Of many replicas only a few are compared: the name's favourites, and some others, of which the least busy one takes what the
 * favourites cannot bear.
 * @param groups - candidates; no replica is in two groups.
 * @param options.slots - adapters that each replica computes with at once.
 * @param options.fits - whether a replica can answer, beside being ready. Default: each can.
 */
export function decideReplicas(
  groups: readonly Candidates[],
  name: string,
  {
    random,
    slots = Number.POSITIVE_INFINITY,
    fits = () => true,
  }: { random?: (() => number) | undefined; slots?: number | undefined; fits?: ((replica: ReplicaView) => boolean) | undefined } = {},
): ReplicaView[] {
  const isGood = (replica: ReplicaView): boolean => replica.state.ready && fits(replica);
  const compared = groups.flatMap((candidates) => comparedOf(candidates, name, isGood));
  if (compared.length < 2) return compared;
  const fresh = compared.filter((replica) => replica.fresh);
  const counted = fresh.length > 0 ? fresh : compared;
  const { requests, replicas } = groups.every(isFew)
    ? { requests: counted.reduce((sum, { inFlight }) => sum + inFlight, 0), replicas: counted.length }
    : loadOf(groups);
  const slack = counted.some(({ proven }) => proven.size > slots) ? crowdedSlack : 0;
  const bound = random === undefined ? Math.ceil((loadBound * (requests + 1)) / replicas) + slack : Number.POSITIVE_INFINITY;
  return compared
    .map((replica) => ({
      replica,
      silent: replica.fresh ? 0 : 1,
      excess: Math.max(0, replica.inFlight + 1 - bound),
      preference: random?.() ?? preferenceOf(name, replica),
    }))
    .sort((a, b) => a.silent - b.silent || a.excess - b.excess || b.preference - a.preference)
    .map(({ replica }) => replica);
}

const isFew = ({ replicas }: Candidates): boolean => replicas.length <= fewReplicas;

/** Good replicas, none of them twice. */
function comparedOf(candidates: Candidates, name: string, isGood: (replica: ReplicaView) => boolean): ReplicaView[] {
  const { replicas } = candidates;
  if (isFew(candidates)) return replicas.filter(isGood);
  const found = [...new Set([...candidates.favourites(name), ...candidates.others()])].filter(isGood);
  if (found.some(({ fresh }) => fresh)) return found;
  const fresh = firstOf(replicas, (replica) => isGood(replica) && replica.fresh);
  return fresh.length > 0 ? fresh : found.length > 0 ? found : firstOf(replicas, isGood);
}

function firstOf(replicas: readonly ReplicaView[], holds: (replica: ReplicaView) => boolean): ReplicaView[] {
  const found: ReplicaView[] = [];
  for (const replica of replicas) {
    if (holds(replica)) found.push(replica);
    if (found.length === fewReplicas) break;
  }
  return found;
}

function loadOf(groups: readonly Candidates[]): { requests: number; replicas: number } {
  const sum = { requests: 0, replicas: 0 };
  for (const { load } of groups) {
    sum.requests += load.requests;
    sum.replicas += load.replicas;
  }
  return { requests: sum.requests, replicas: Math.max(1, sum.replicas) };
}

/** How much a name prefers a replica; the greatest comes first. */
export const preferenceOf = (name: string, { state: { replica } }: Pick<ReplicaView, "state">): number => hash(`${name} ${replica}`);

/** 32 bits; mixed, so that names that differ in the last letter spread too. */
export function hash(text: string): number {
  let h = fnv1a(text);
  h = Math.imul(h ^ (h >>> 15), 0x2c1b3c6d);
  return (h ^ (h >>> 12)) >>> 0;
}
