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

interface PlacementInput {
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
  const seeds = new Map(replicas.map((replica) => [replica, hash(replica)]));
  const load = new Map(replicas.map((replica) => [replica, 0]));
  const held = new Map(replicas.map((replica) => [replica, new Set<Item>()]));
  const roomy = fitsEverywhere(versions.length, capacity);
  const items = versions.map((version): Item => ({ ...version, seed: hash(version.loraName), places: [], copies: 0 }));
  // First who comes first; among equals the same order always.
  items.sort((a, b) => a.rank - b.rank || a.seed - b.seed || (a.loraName < b.loraName ? -1 : 1));

  const weight = (item: Item, replica: string): number => mix(item.seed ^ (seeds.get(replica) ?? 0));
  const put = (item: Item, replica: string): void => {
    item.places.push(replica);
    load.set(replica, (load.get(replica) ?? 0) + 1);
    held.get(replica)?.add(item);
  };
  const take = (item: Item, replica: string): void => {
    item.places.splice(item.places.indexOf(replica), 1);
    load.set(replica, (load.get(replica) ?? 0) - 1);
    held.get(replica)?.delete(item);
  };
  const hasRoom = (replica: string): boolean => (load.get(replica) ?? 0) < capacity;
  /** The emptiest replica with room that does not have it yet; among equals its own favourite. */
  const roomFor = (item: Item): string | undefined => {
    let best: string | undefined;
    for (const replica of replicas) {
      if (!hasRoom(replica) || item.places.includes(replica)) continue;
      const less = best === undefined ? -1 : (load.get(replica) ?? 0) - (load.get(best) ?? 0);
      if (best === undefined || less < 0 || (less === 0 && weight(item, replica) > weight(item, best))) best = replica;
    }
    return best;
  };

  /* How many copies each may have. */
  const pinned = items.filter(({ placement }) => placement.mode === "pinned");
  const free = items.filter(({ placement }) => placement.mode !== "pinned");
  for (const item of pinned) {
    const pins = item.placement.mode === "pinned" ? item.placement.pins : [];
    for (const pin of pins) if (load.has(pin) && hasRoom(pin)) put(item, pin);
  }
  const spread = free.filter(({ placement }) => placement.mode === "spread");
  for (const item of spread) item.copies = Math.min(replicas.length, item.placement.mode === "spread" ? item.placement.replicas : 0);
  const everywhere = free.filter(({ placement }) => placement.mode === "all");
  const slots = replicas.length * capacity - sum(load.values()) - sum(spread.map(({ copies }) => copies));
  const share = Math.floor(slots / Math.max(1, everywhere.length));
  for (const item of everywhere) item.copies = Math.max(1, Math.min(replicas.length, share));
  const placing = roomy ? spread : free;

  /* What has a place keeps it; one copy more than its share is let go of only when somebody needs the room. */
  for (const item of placing) {
    const now = (item.current ?? replicas).filter((replica) => load.has(replica));
    const kept = item.placement.mode === "all" && item.current !== null ? item.copies + 1 : item.copies;
    for (const replica of now.toSorted((a, b) => weight(item, b) - weight(item, a))) {
      if (item.places.length < kept && hasRoom(replica)) put(item, replica);
    }
  }
  /* A first copy of everything, if need be at the cost of others' second ones, or of those that come later. */
  for (const item of placing) {
    if (item.places.length > 0) continue;
    const replica = roomFor(item) ?? makeRoom(item);
    if (replica !== undefined) put(item, replica);
  }
  function makeRoom(item: Item): string | undefined {
    let victim: Item | undefined;
    for (const other of placing) {
      if (other.places.length === 0 || (other.places.length === 1 && other.rank <= item.rank)) continue;
      const worse = victim === undefined || other.places.length > victim.places.length;
      if (worse || (other.places.length === victim?.places.length && other.rank >= victim.rank)) victim = other;
    }
    const replica = victim?.places.toSorted((a, b) => weight(victim, a) - weight(victim, b))[0];
    if (victim !== undefined && replica !== undefined) take(victim, replica);
    return replica;
  }
  /* Further copies, evenly. */
  for (let copies = 2; copies <= replicas.length; copies++) {
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
    const order = [...load].toSorted(([, a], [, b]) => a - b);
    const [emptiest, least] = order[0] ?? ["", 0];
    const [fullest, most] = order.at(-1) ?? ["", 0];
    if (most - least <= slack) break;
    let moved: Item | undefined;
    for (const item of held.get(fullest) ?? []) {
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
    result.set(item.loraName, isEverywhere ? { replicas: null, problem: null } : placedOf(item, load, counts));
  }
  return result;
}

interface Item extends PlacedVersion {
  seed: number;
  /** Copies it should have. */
  copies: number;
  places: string[];
}

function placedOf(
  { placement, places, copies, loraName }: Item,
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
  const now = current ?? replicas;
  const leaving = now.filter((replica) => !target.includes(replica) && replicas.includes(replica));
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
