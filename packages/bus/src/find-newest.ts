/** The newest messages of a stream that match a filter, although NATS reads streams forwards only. */

/** The first `count` messages that match and have at least this sequence, oldest first; fewer if there are no more. */
type ReadFrom<M> = (seq: number, count: number) => Promise<M[]>;

/** NATS gives at most so many messages for one request. */
const mostAtOnce = 1000;

/**
 * Reads in stretches of growing length before `end`, and halves a stretch in which there are more than are wanted. So it reads a small
 * multiple of what it returns, however many messages match, and however far they are apart.
 * @param end - the highest sequence to look at.
 * @returns at most `limit`, newest first.
 */
export async function findNewest<M extends { seq: number }>(readFrom: ReadFrom<M>, end: number, limit: number): Promise<M[]> {
  const found: M[] = [];
  for (let last = end, length = limit * 2; last >= 1 && found.length < limit; last -= length, length *= 4) {
    found.push(...(await newestWithin(readFrom, Math.max(1, last - length + 1), last, limit - found.length)));
  }
  return found;
}

async function newestWithin<M extends { seq: number }>(readFrom: ReadFrom<M>, first: number, last: number, limit: number): Promise<M[]> {
  if (first > last || limit <= 0) return [];
  const count = Math.min(limit + 1, mostAtOnce);
  const some = await readFrom(first, count);
  const inside = some.filter(({ seq }) => seq <= last);
  // No more than these are in the stretch.
  if (some.length < count || inside.length < some.length) return inside.slice(-limit).reverse();
  const from = some[0]?.seq ?? first;
  const middle = Math.floor((from + last) / 2);
  const upper = await newestWithin(readFrom, middle + 1, last, limit);
  return [...upper, ...(await newestWithin(readFrom, from, middle, limit - upper.length))];
}
