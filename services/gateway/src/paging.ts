/** Pure: pages of lists, with OpenAI's cursors. */
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
    if (at < 0) throw badRequest("invalid_cursor", `after: there is no "${query.after}" in this list.`, "after");
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
