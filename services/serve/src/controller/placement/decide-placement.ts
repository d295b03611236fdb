/**
 * Pure: which replicas of an engine hold which versions, when not every replica can hold them all.
 *
 * A replica keeps `capacity` versions at hand (max_cpu_loras); with more than that vLLM reads adapters from the disk again and
 * again, in the middle of requests. While everything fits everywhere, nothing is placed. Otherwise each version gets as many copies
 * as there is room for, and a place that is good stays: only what must move moves, when versions or replicas come and go.
 */
import { fnv1a, type Placement, type Problem } from "@loraline/contracts";
import type { VersionRank } from "../../version-rank.ts";

export interface PlacedVersion {
  loraName: string;
  placement: Placement;
  /** What goes first when there is no room for all. */
  rank: VersionRank;
  /** Where it is now; null: everywhere. */
  current: readonly string[] | null;
}

export interface Placed {
  /** null: everywhere. */
  replicas: readonly string[] | null;
  /** Why it is on fewer replicas than were asked for, or on none. */
  problem: Problem | null;
}

export interface PlacementInput {
  engine: string;
  versions: readonly PlacedVersion[];
  /** Every replica that is expected to serve; one that restarts is still one. */
  replicas: readonly string[];
  /** Versions per replica. */
  capacity: number;
}

/** Whether every version can be everywhere, as far as room goes. */
export const fitsEverywhere = (versions: number, capacity: number): boolean => versions <= capacity;

/** The place of every version. With no replica known nothing changes. */
export function decidePlacement({ engine, versions, replicas, capacity }: PlacementInput): Map<string, Placed> {
  const result = new Map<string, Placed>();
  if (replicas.length === 0) {
    for (const { loraName, current } of versions) result.set(loraName, { replicas: current, problem: null });
    return result;
  }
  // Replicas by number, because this runs over ten thousand versions and hundreds of replicas while nothing else can.
  const seeds = replicas.map((replica) => hash(replica));
  const load = replicas.map(() => 0);
  const held = replicas.map(() => new Set<Item>());
  const numberOf = new Map(replicas.map((replica, number) => [replica, number]));
  let free = replicas.length * capacity;
  const roomy = fitsEverywhere(versions.length, capacity);
  const items = versions.map((version): Item => ({ ...version, seed: hash(version.loraName), places: [], copies: 0 }));
  // First who comes first; among equals the same order always.
  items.sort((a, b) => a.rank - b.rank || a.seed - b.seed || (a.loraName < b.loraName ? -1 : 1));

  const weight = (item: Item, replica: number): number => mix(item.seed ^ (seeds[replica] ?? 0));
  const loadOf = (replica: number): number => load[replica] ?? 0;
  const put = (item: Item, replica: number): void => {
    item.places.push(replica);
    load[replica] = loadOf(replica) + 1;
    free -= 1;
    held[replica]?.add(item);
  };
  const take = (item: Item, replica: number): void => {
    item.places.splice(item.places.indexOf(replica), 1);
    load[replica] = loadOf(replica) - 1;
    free += 1;
    held[replica]?.delete(item);
  };
  const hasRoom = (replica: number): boolean => loadOf(replica) < capacity;
  /** The emptiest replica with room that does not have it yet; among equals its own favourite. */
  const roomFor = (item: Item): number | undefined => {
    if (free === 0) return undefined;
    let best: number | undefined;
    let [least, most] = [capacity, 0];
    for (let replica = 0; replica < load.length; replica++) {
      const of = loadOf(replica);
      if (of > least || of >= capacity || item.places.includes(replica)) continue;
      const own = weight(item, replica);
      if (of === least && own <= most && best !== undefined) continue;
      [best, least, most] = [replica, of, own];
    }
    return best;
  };

  /* How many copies each may have. */
  const pinned = items.filter(({ placement }) => placement.mode === "pinned");
  const unpinned = items.filter(({ placement }) => placement.mode !== "pinned");
  for (const item of pinned) {
    const pins = item.placement.mode === "pinned" ? item.placement.pins : [];
    for (const pin of pins) {
      const replica = numberOf.get(pin);
      if (replica !== undefined && hasRoom(replica)) put(item, replica);
    }
  }
  const spread = unpinned.filter(({ placement }) => placement.mode === "spread");
  for (const item of spread) item.copies = Math.min(replicas.length, item.placement.mode === "spread" ? item.placement.replicas : 0);
  const everywhere = unpinned.filter(({ placement }) => placement.mode === "all");
  const slots = free - sum(spread.map(({ copies }) => copies));
  const share = Math.floor(slots / Math.max(1, everywhere.length));
  for (const item of everywhere) item.copies = Math.max(1, Math.min(replicas.length, share));
  const placing = roomy ? spread : unpinned;

  /* What has a place keeps it; one copy more than its share is let go of only when somebody needs the room. */
  for (const item of placing) {
    const kept = item.placement.mode === "all" && item.current !== null ? item.copies + 1 : item.copies;
    const now = item.current === null ? replicas.keys() : item.current.flatMap((replica) => numberOf.get(replica) ?? []);
    const left = [...now].map((replica) => ({ replica, weight: weight(item, replica) }));
    while (item.places.length < kept && free > 0) {
      let best: { replica: number; weight: number } | undefined;
      for (const each of left)
        if (hasRoom(each.replica) && !item.places.includes(each.replica) && (best === undefined || each.weight > best.weight)) best = each;
      if (best === undefined) break;
      put(item, best.replica);
    }
  }
  /* A first copy of everything, if need be at the cost of others' second ones, or of those that come later. */
  const victims = createVictims(placing);
  for (const item of placing) {
    if (item.places.length > 0) continue;
    const replica = roomFor(item) ?? makeRoom(item);
    if (replica !== undefined) put(item, replica);
  }
  function makeRoom(item: Item): number | undefined {
    const victim = victims.next(item);
    const replica = victim?.places.toSorted((a, b) => weight(victim, a) - weight(victim, b))[0];
    if (victim !== undefined && replica !== undefined) take(victim, replica);
    return replica;
  }
  /* Further copies, evenly. */
  for (let copies = 2; copies <= replicas.length && free > 0; copies++) {
    let placed = false;
    for (const item of placing) {
      if (item.places.length === 0 || item.places.length >= Math.min(copies, item.copies)) continue;
      const replica = roomFor(item);
      if (replica === undefined) continue;
      put(item, replica);
      placed = true;
    }
    if (!placed && placing.every((item) => item.copies <= copies)) break;
  }
  /* A replica that came takes its share of those that are fuller than others by more than a little. */
  const slack = Math.max(1, Math.ceil(capacity / 10));
  for (let moves = 0; moves < placing.length * replicas.length; moves++) {
    let [emptiest, fullest] = [0, 0];
    for (let replica = 1; replica < load.length; replica++) {
      if (loadOf(replica) < loadOf(emptiest)) emptiest = replica;
      if (loadOf(replica) >= loadOf(fullest)) fullest = replica;
    }
    if (loadOf(fullest) - loadOf(emptiest) <= slack) break;
    let moved: Item | undefined;
    for (const item of held[fullest] ?? []) {
      if (item.placement.mode === "pinned" || item.places.includes(emptiest)) continue;
      if (moved === undefined || weight(item, emptiest) > weight(moved, emptiest)) moved = item;
    }
    if (moved === undefined) break;
    take(moved, fullest);
    put(moved, emptiest);
  }

  const counts = { engine, capacity, replicas: replicas.length, versions: versions.length };
  for (const item of items) {
    const isEverywhere = roomy && item.placement.mode === "all";
    const places = item.places.map((replica) => replicas[replica] ?? "");
    result.set(item.loraName, isEverywhere ? { replicas: null, problem: null } : placedOf(item, places, numberOf, counts));
  }
  return result;
}

/**
 * Who gives a copy up for an item that has none: of those with the most copies the one that comes last; the only copy of an item just to one
 * that comes before it. Items are asked for in their order, and none gets a second copy meanwhile; so nobody who was passed is looked at
 * again for the same number of copies.
 */
function createVictims(items: readonly Item[]): { next(item: Item): Item | undefined } {
  let most = items.reduce((highest, { places }) => Math.max(highest, places.length), 0);
  let at = items.length - 1;
  return {
    next(item) {
      for (; most > 0; most--, at = items.length - 1) {
        for (; at >= 0; at--) {
          const other = items[at];
          if (other?.places.length !== most) continue;
          if (most > 1 || other.rank > item.rank) return other;
          return undefined;
        }
      }
      return undefined;
    },
  };
}

interface Item extends PlacedVersion {
  seed: number;
  /** Copies it should have. */
  copies: number;
  /** Numbers of replicas. */
  places: number[];
}

function placedOf(
  { placement, copies, loraName }: Item,
  places: readonly string[],
  known: ReadonlyMap<string, number>,
  { engine, capacity, replicas, versions }: { engine: string; capacity: number; replicas: number; versions: number },
): Placed {
  const room = `Each of the ${replicas} replicas of engine "${engine}" has room for ${capacity} adapter versions (max_cpu_loras), and ${versions} are wanted.`;
  const more = "Raise max_cpu_loras, add replicas, or pin and spread fewer adapters.";
  if (placement.mode === "pinned") {
    const absent = placement.pins.filter((pin) => !known.has(pin));
    const full = placement.pins.filter((pin) => known.has(pin) && !places.includes(pin));
    // An absent replica may come; then the version is already where it should be.
    const on = placement.pins.filter((pin) => !full.includes(pin));
    if (absent.length + full.length === 0) return { replicas: on, problem: null };
    const why = [
      ...(absent.length > 0 ? [`there is no replica ${absent.join(", ")} now`] : []),
      ...(full.length > 0 ? [`${full.join(", ")} has no room left`] : []),
    ].join(", and ");
    return {
      replicas: on,
      problem: { code: "PIN_NOT_HELD", message: `${loraName} is pinned to ${placement.pins.join(", ")}, but ${why}. ${room}` },
    };
  }
  const replicasNow = places.toSorted();
  if (places.length === 0)
    return { replicas: [], problem: { code: "NO_ROOM", message: `${loraName} fits on no replica. ${room} ${more}` } };
  const asked = placement.mode === "spread" ? placement.replicas : copies;
  if (placement.mode !== "spread" || places.length >= asked) return { replicas: replicasNow, problem: null };
  const message = `${loraName} should be on ${asked} replicas and is on ${places.length}. ${room}`;
  return { replicas: replicasNow, problem: { code: "FEWER_REPLICAS", message } };
}

/**
 * Make before break: the replicas that a version leaves keep it until those that it goes to are done with it. `state` says of a replica
 * whether it has the version proven, has failed to, or is still at it. A replica that is away is not waited for, but some replica must have
 * the version.
 */
export function decideHandover(
  target: readonly string[] | null,
  current: readonly string[] | null,
  replicas: readonly string[],
  state: (replica: string) => "proven" | "failed" | "pending" | "away",
): readonly string[] | null {
  if (target === null) return null;
  const leaving =
    current === null
      ? replicas.filter((replica) => !target.includes(replica))
      : current.filter((replica) => !target.includes(replica) && replicas.includes(replica));
  if (leaving.length === 0 || target.length === 0) return target;
  const states = target.map(state);
  if (states.includes("proven") && !states.includes("pending")) return target;
  // A replica that has not proven the version is not worth keeping.
  const kept = leaving.filter((replica) => state(replica) === "proven");
  return kept.length === 0 ? target : [...target, ...kept].toSorted();
}

const sum = (values: Iterable<number>): number => [...values].reduce((total, value) => total + value, 0);

/** 32 bits. */
const hash = (text: string): number => mix(fnv1a(text));
function mix(value: number): number {
  let h = Math.imul(value ^ (value >>> 15), 0x2c1b3c6d);
  h = Math.imul(h ^ (h >>> 12), 0x297a2d39);
  return (h ^ (h >>> 15)) >>> 0;
}
