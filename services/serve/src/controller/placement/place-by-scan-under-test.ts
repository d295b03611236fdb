/**
 * For tests: the same places as decide-placement.ts decides, found by looking at every version and replica for each step. It is slow and
 * says what is meant.
 */
import { fnv1a } from "@loraline/contracts";
import { fitsEverywhere, type PlacedVersion, type PlacementInput } from "./decide-placement.ts";

/** Replicas of every version; null: everywhere. */
export function placeByScan({ versions, replicas, capacity }: PlacementInput): Map<string, readonly string[] | null> {
  const result = new Map<string, readonly string[] | null>();
  if (replicas.length === 0) {
    for (const { loraName, current } of versions) result.set(loraName, current);
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

  for (const item of items) {
    const isEverywhere = roomy && item.placement.mode === "all";
    result.set(item.loraName, isEverywhere ? null : item.places.toSorted());
  }
  return result;
}

interface Item extends PlacedVersion {
  seed: number;
  /** Copies it should have. */
  copies: number;
  places: string[];
}

const sum = (values: Iterable<number>): number => [...values].reduce((total, value) => total + value, 0);

/** 32 bits. */
const hash = (text: string): number => mix(fnv1a(text));
function mix(value: number): number {
  let h = Math.imul(value ^ (value >>> 15), 0x2c1b3c6d);
  h = Math.imul(h ^ (h >>> 12), 0x297a2d39);
  return (h ^ (h >>> 15)) >>> 0;
}
