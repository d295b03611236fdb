import fc from "fast-check";
import { encodeTime } from "ulid";
import { expect, it } from "vitest";
import { type Entries, readPage } from "./read-page.ts";

const hour = 3_600_000;
const start = 1_000_000 * 12 * hour;

interface Item {
  id: string;
  at: number;
  hidden: boolean;
  bytes?: number;
}

const mib = 1024 ** 2;
const bytesOf = (items: readonly Item[]): number => items.reduce((sum, { bytes = 0 }) => sum + bytes, 0);

const storeOf = (items: Item[]) => {
  const reads: number[] = [];
  const entries: Entries<Item> = {
    ids: async () => items.map(({ id }) => id),
    sizes: async (ids) => new Map(items.filter(({ id }) => ids.includes(id)).map(({ id, bytes = 0 }) => [id, bytes])),
    async read(ids) {
      reads.push(ids.length);
      const some = items.filter(({ id }) => ids.includes(id));
      expect(some.length === 1 || bytesOf(some) <= 8 * mib).toBe(true);
      return some;
    },
    idOf: ({ id }) => id,
    timeOf: ({ at }) => new Date(at).toISOString(),
    known: new Map(),
  };
  return { entries, reads };
};
const idAt = (ms: number, n: number): string => encodeTime(ms, 10) + String(n).padStart(16, "0");

/** Made at its id's time, or within a day after the window that its id names. */
const anyItem = fc.record({
  at: fc.integer({ min: 0, max: 40 * hour }),
  keyed: fc.option(fc.integer({ min: 0, max: 1 }), { nil: undefined }),
  hidden: fc.boolean(),
  bytes: fc.oneof(fc.constant(1000), fc.integer({ min: 0, max: 9 * mib })),
});

it("gives the pages that sorting everything gives, in both orders, none of more than 8 MiB", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(anyItem, { maxLength: 60 }),
      fc.integer({ min: 1, max: 7 }),
      fc.constantFrom("asc" as const, "desc" as const),
      fc.integer({ min: 0, max: 40 * hour }),
      async (made, limit, order, since) => {
        const items = made.map(({ at, keyed, hidden, bytes }, n) => {
          const ms = start + at;
          const window = Math.floor(ms / (12 * hour)) * 12 * hour;
          return { id: keyed === undefined ? idAt(ms, n) : idAt(window - keyed * 12 * hour, n), at: ms, hidden, bytes };
        });
        const { entries } = storeOf(items);
        const sorted = items
          .filter(({ at }) => at >= start + since)
          .toSorted((a, b) => (order === "desc" ? -1 : 1) * (a.at - b.at || (a.id < b.id ? -1 : 1)));
        const shown = ({ hidden }: Item) => !hidden;
        const paged: Item[] = [];
        for (let after: string | undefined; ;) {
          const page = await readPage(entries, { after, limit, order, shown, since: start + since });
          if (page === undefined) throw new Error("the cursor is lost");
          paged.push(...page.items);
          expect(page.items.length === 1 || bytesOf(page.items) <= 8 * mib).toBe(true);
          expect(page.hasMore).toBe(paged.length < sorted.filter(shown).length);
          if (!page.hasMore) break;
          after = page.items.at(-1)?.id;
        }
        expect(paged.map(({ id }) => id)).toEqual(sorted.filter(shown).map(({ id }) => id));
      },
    ),
  );
});

it("reads no more than the page, of ten thousand; of those with idempotency keys each once", async () => {
  const plain = storeOf(Array.from({ length: 10_000 }, (_, n) => ({ id: idAt(start + n + 1, n), at: start + n + 1, hidden: false })));
  const page = await readPage(plain.entries, { limit: 20 });
  expect(page).toMatchObject({ hasMore: true, items: { length: 20, 0: { at: start + 10_000 } } });
  expect(await readPage(plain.entries, { limit: 20, after: page?.items.at(-1)?.id })).toMatchObject({ items: { 0: { at: start + 9980 } } });
  expect(plain.reads).toEqual([21, 1, 21]);

  const keyed = storeOf(Array.from({ length: 1000 }, (_, n) => ({ id: idAt(start, n), at: start + (n % 7) * hour, hidden: false })));
  const read = async () => {
    keyed.reads.length = 0;
    await readPage(keyed.entries, { limit: 20 });
    return keyed.reads.reduce((sum, count) => sum + count, 0);
  };
  expect(await read()).toBe(1000);
  expect(await read()).toBe(21);
});

it("ends a page of large entries early, reads no others for it, and goes on with the next one", async () => {
  const size = 442_000;
  const large = Array.from({ length: 560 }, (_, n) => ({ id: idAt(start + n + 1, n), at: start + n + 1, hidden: false, bytes: size }));
  const { entries, reads } = storeOf(large);
  const page = await readPage(entries, { limit: 10_000 });
  const fits = Math.floor((8 * mib) / size);
  expect(page).toMatchObject({ hasMore: true, items: { length: fits, 0: { at: start + 560 } } });
  expect(reads.reduce((sum, count) => sum + count, 0)).toBeLessThan(fits * 1.5);
  const next = await readPage(entries, { limit: 10_000, after: page?.items.at(-1)?.id });
  expect(next).toMatchObject({ hasMore: true, items: { length: fits, 0: { at: start + 560 - fits } } });
});

it("knows no page after what is not there", async () => {
  expect(await readPage(storeOf([]).entries, { limit: 5, after: idAt(start, 1) })).toBeUndefined();
});
