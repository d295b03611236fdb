/**
 * Pages of a tenant's runs or datasets, in the order of their times, of which only the entries that a page may hold are read. Their ids
 * are ULIDs, which begin with a time; the id of an idempotency key begins with that of a window, so its entry was made somewhat later.
 * Tenants decide how large entries are, so a page ends early when it has many bytes.
 */
import { decodeTime } from "ulid";
import { keyedIdWindow } from "../idempotency.ts";

export interface Entries<T> {
  /** Ids of all entries, in any order. */
  ids(): Promise<string[]>;
  /** Bytes of the entries with these ids, by id. Those that are gone may be left out. */
  sizes(ids: readonly string[]): Promise<ReadonlyMap<string, number>>;
  /** The entries with these ids, in any order. Those that are gone are left out. */
  read(ids: readonly string[]): Promise<T[]>;
  idOf(item: T): string;
  /** When it was made, ISO 8601. */
  timeOf(item: T): string;
  /** When entries were made whose ids do not say so exactly, in milliseconds since the epoch, by id: what was read before need not be read again. */
  known: Map<string, number>;
}

export interface PageRequest<T> {
  /** Id of the item that the page comes after. */
  after?: string | undefined;
  limit: number;
  /** Absent: newest first. */
  order?: "asc" | "desc";
  /** Items for which it is false are left out, though they still work as `after`. */
  shown?: ((item: T) => boolean) | undefined;
  /** Only items that were made at this time or later, in milliseconds since the epoch. */
  since?: number;
}

interface Place {
  at: number;
  id: string;
}

/** An item that was read. */
interface Held<T> {
  item: T;
  place: Place;
  bytes: number;
}

/** Entries that one step reads at most. */
const mostAtOnce = 500;
/** Bytes of the entries that a page, or one step on the way to it, holds at most; a single entry may have more. */
const mostBytes = 8 * 1024 ** 2;
const mostKnown = 100_000;

/** @returns undefined when there is no entry `after`. */
export async function readPage<T>(entries: Entries<T>, page: PageRequest<T>): Promise<{ items: T[]; hasMore: boolean } | undefined> {
  const { after, limit, order = "desc", shown = () => true, since = 0 } = page;
  const sign = order === "desc" ? -1 : 1;
  const compare = (a: Place, b: Place): number => sign * (a.at - b.at || (a.id < b.id ? -1 : a.id > b.id ? 1 : 0));
  const timesOf = (id: string) => timesOfId(id, entries.known);
  const placeOf = (item: T): Place => {
    const id = entries.idOf(item);
    const { earliest, latest } = timesOfId(id, noneKnown);
    const at = Math.min(latest, Math.max(earliest, Date.parse(entries.timeOf(item))));
    if (earliest < latest) {
      if (entries.known.size >= mostKnown) entries.known.clear();
      entries.known.set(id, at);
    }
    return { at, id };
  };

  let cursor: Place | undefined;
  if (after !== undefined) {
    const [item] = await entries.read([after]);
    if (item === undefined) return undefined;
    cursor = placeOf(item);
  }
  /** The first place that an entry can have, judged by its id. */
  const unread: Place[] = [];
  for (const id of await entries.ids()) {
    const { earliest, latest } = timesOf(id);
    if (latest < since) continue;
    const [first, last] = order === "desc" ? [latest, earliest] : [earliest, latest];
    if (cursor === undefined || compare({ at: last, id }, cursor) > 0) unread.push({ at: first, id });
  }
  unread.sort(compare);

  const items: Held<T>[] = [];
  /** Read, and not yet known to come before all that is unread. */
  const pending: Held<T>[] = [];
  let isFull = false;
  // Where few of them are shown, ever more are read at once.
  let count = limit + 1;
  for (; !isFull && items.length <= limit && (unread.length > 0 || pending.length > 0); count *= 2) {
    const next = unread.slice(0, Math.min(mostAtOnce, count)).map(({ id }) => id);
    const sizes = next.length === 0 ? noneKnown : await entries.sizes(next);
    const bytesOf = (id: string): number => sizes.get(id) ?? 0;
    const room = mostBytes - items.reduce((sum, { bytes }) => sum + bytes, 0);
    const some = next.slice(0, fitting(next.map(bytesOf), Math.max(room, mostBytes / 4)));
    unread.splice(0, some.length);
    for (const item of some.length === 0 ? [] : await entries.read(some)) {
      const place = placeOf(item);
      if ((cursor !== undefined && compare(place, cursor) <= 0) || place.at < since || !shown(item)) continue;
      pending.push({ item, place, bytes: bytesOf(place.id) });
    }
    pending.sort((a, b) => compare(a.place, b.place));
    const bound = unread[0];
    const open = bound === undefined ? -1 : pending.findIndex(({ place }) => compare(place, bound) >= 0);
    items.push(...pending.splice(0, open < 0 ? pending.length : open));

    const held = [...items, ...pending].map(({ bytes }) => bytes);
    const kept = fitting(held, mostBytes);
    isFull = kept < items.length;
    items.splice(kept);
    const tooMany = pending.splice(Math.max(0, kept - items.length));
    if (tooMany.length === 0) continue;
    // They are read again when they are next: their places are known exactly now.
    unread.push(...tooMany.map(({ place }) => place));
    unread.sort(compare);
  }
  return { items: items.slice(0, limit).map(({ item }) => item), hasMore: isFull || items.length > limit };
}

/** How many of these, from the first on, have no more bytes than that: one in any case. */
function fitting(sizes: readonly number[], most: number): number {
  let sum = 0;
  const over = sizes.findIndex((bytes) => (sum += bytes) > most);
  return over < 0 ? sizes.length : Math.max(1, over);
}

const noneKnown: ReadonlyMap<string, number> = new Map();

/** Between which times an entry was made. */
function timesOfId(id: string, known: ReadonlyMap<string, number>): { earliest: number; latest: number } {
  const at = known.get(id);
  if (at !== undefined) return { earliest: at, latest: at };
  const earliest = decodeTime(id);
  return { earliest, latest: earliest + keyedIdWindow(earliest) };
}
