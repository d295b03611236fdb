/** Pure: pages of lists, with OpenAI's cursors. */
import { ulid } from "@loraline/contracts";
import { badRequest } from "./errors.ts";

interface PageQuery {
  after: string | undefined;
  limit: number;
}

interface Page<T> {
  object: "list";
  data: T[];
  has_more: boolean;
  first_id: string | null;
  last_id: string | null;
}

/** @throws PermanentError 400 when `limit` is no number from 1 to `max`. */
export function pageQueryOf(query: unknown, limits: { limit: number; max: number }): PageQuery {
  const { after, limit = String(limits.limit) } = query as { after?: string; limit?: string };
  const count = Number(limit);
  if (!Number.isInteger(count) || count < 1 || count > limits.max) {
    throw badRequest("invalid_limit", `limit must be a whole number from 1 to ${limits.max}, not "${limit}".`, "limit");
  }
  return { after: after === "" ? undefined : after, limit: count };
}

/**
 * The id that a cursor names, in the form in which entries have it.
 * @throws PermanentError 400 when it names none.
 */
export function idOfCursor(after: string | undefined, idOf: (after: string) => string | undefined): string | undefined {
  if (after === undefined) return undefined;
  const id = idOf(after);
  if (id === undefined) throw noCursor(after);
  return id;
}

/**
 * OpenAI's page of items that are read already.
 * @param read - undefined: nothing in the list has the id of the cursor.
 * @throws PermanentError 400 when `after` names no item.
 */
export function pageOfItems<T, V extends { id: string }>(
  read: { items: readonly T[]; hasMore: boolean } | undefined,
  query: PageQuery,
  view: (item: T) => V,
): Page<V> {
  if (read === undefined) throw noCursor(query.after);
  const data = read.items.map(view);
  return { object: "list", data, has_more: read.hasMore, first_id: data[0]?.id ?? null, last_id: data.at(-1)?.id ?? null };
}

/**
 * A page as our own lists have it.
 * @param read - as of `pageOfItems`.
 */
export function dataOfPage<T>(read: { items: T[]; hasMore: boolean } | undefined, { after }: PageQuery): { data: T[]; has_more: boolean } {
  if (read === undefined) throw noCursor(after);
  return { data: read.items, has_more: read.hasMore };
}

export const ulidOf = (id: string): string | undefined => (ulid.safeParse(id).success ? id : undefined);

const noCursor = (after: string | undefined) => badRequest("invalid_cursor", `after: there is no "${after}" in this list.`, "after");

/**
 * The page after the cursor. Items for which `shown` is false are left out but still work as cursors, so that a caller may delete items
 * while it goes through the pages.
 * @throws PermanentError 400 when `after` names no item.
 */
export function pageOf<T, V extends { id: string }>(
  items: readonly T[],
  query: PageQuery,
  { idOf, view, shown = () => true }: { idOf: (item: T) => string; view: (item: T) => V; shown?: (item: T) => boolean },
): Page<V> {
  let start = 0;
  if (query.after !== undefined) {
    const at = items.findIndex((item) => idOf(item) === query.after);
    if (at < 0) throw noCursor(query.after);
    start = at + 1;
  }
  const rest = items.slice(start).filter(shown);
  const data = rest.slice(0, query.limit).map(view);
  return {
    object: "list",
    data,
    has_more: rest.length > data.length,
    first_id: data[0]?.id ?? null,
    last_id: data.at(-1)?.id ?? null,
  };
}
