/**
 * Pages of a tenant's runs or datasets, in the order of their times, of which only the entries that a page may hold are read. Their ids
 * are ULIDs, which begin with a time; the id of an idempotency key begins with that of a window, so its entry was made somewhat later.
 */
import { decodeTime } from "ulid";
import { keyedIdWindow } from "../idempotency.ts";

export interface Entries<T> {
  /** Ids of all entries, in any order. */
  ids(): Promise<string[]>;
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

/** Entries that one step reads at most. */
const mostAtOnce = 500;
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

  const items: T[] = [];
  /** Read, and not yet known to come before all that is unread. */
  let pending: { item: T; place: Place }[] = [];
  // Where few of them are shown, ever more are read at once.
  let count = limit + 1;
  for (let next = 0; items.length <= limit && (next < unread.length || pending.length > 0); count *= 2) {
    const some = unread.slice(next, next + Math.min(mostAtOnce, count));
    next += some.length;
    for (const item of some.length === 0 ? [] : await entries.read(some.map(({ id }) => id))) {
      const place = placeOf(item);
      if ((cursor === undefined || compare(place, cursor) > 0) && place.at >= since && shown(item)) pending.push({ item, place });
    }
    pending.sort((a, b) => compare(a.place, b.place));
    const bound = unread[next];
    const open = bound === undefined ? -1 : pending.findIndex(({ place }) => compare(place, bound) >= 0);
    const settled = open < 0 ? pending.length : open;
    items.push(...pending.slice(0, settled).map(({ item }) => item));
    pending = pending.slice(settled);
  }
  return { items: items.slice(0, limit), hasMore: items.length > limit };
}

const noneKnown: ReadonlyMap<string, number> = new Map();

/** Between which times an entry was made. */
function timesOfId(id: string, known: ReadonlyMap<string, number>): { earliest: number; latest: number } {
  const at = known.get(id);
  if (at !== undefined) return { earliest: at, latest: at };
  const earliest = decodeTime(id);
  return { earliest, latest: earliest + keyedIdWindow(earliest) };
}
