import type { Placement } from "@loraline/contracts";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { decideHandover, decidePlacement, type Placed, type PlacedVersion } from "./decide-placement.ts";
import { placeByScan } from "./place-by-scan-under-test.ts";

const all: Placement = { mode: "all" };
const version = (n: number, over: Partial<PlacedVersion> = {}): PlacedVersion => ({
  loraName: `acme.a${n}.v1.000000000000`,
  placement: all,
  rank: 0,
  current: null,
  ...over,
});
const many = (count: number, over: Partial<PlacedVersion> = {}) => Array.from({ length: count }, (_, n) => version(n, over));
const names = (count: number, from = 0) => Array.from({ length: count }, (_, n) => `r${n + from}`);
const decide = (versions: readonly PlacedVersion[], replicas: readonly string[], capacity: number) =>
  decidePlacement({ engine: "e", versions, replicas, capacity });
/** The versions as they stand after they were placed. */
const after = (versions: readonly PlacedVersion[], placed: ReadonlyMap<string, Placed>): PlacedVersion[] =>
  versions.map((each) => ({ ...each, current: placed.get(each.loraName)?.replicas ?? null }));
const loads = (placed: ReadonlyMap<string, Placed>, replicas: readonly string[]) =>
  replicas.map((replica) => [...placed.values()].filter((each) => each.replicas?.includes(replica)).length);
const moves = (before: ReadonlyMap<string, Placed>, now: ReadonlyMap<string, Placed>) =>
  [...now].reduce((sum, [name, each]) => sum + (each.replicas ?? []).filter((to) => !before.get(name)?.replicas?.includes(to)).length, 0);

describe("decidePlacement", () => {
  it("places nothing while everything fits everywhere", () => {
    for (const { replicas, problem } of decide(many(16), names(3), 16).values()) expect([replicas, problem]).toEqual([null, null]);
  });

  it("changes nothing when no replica is known", () => {
    const placed = decide([version(1, { current: ["r9"] }), ...many(30)], [], 16);
    expect(placed.get(version(1).loraName)?.replicas).toBe(null);
    expect(decide([version(77, { current: ["r9"] })], [], 0).get(version(77).loraName)).toEqual({ replicas: ["r9"], problem: null });
  });

  it("gives everything as many copies as there is room for, evenly", () => {
    const placed = decide(many(36), names(5), 16);
    expect([...placed.values()].every(({ replicas, problem }) => replicas?.length === 2 && problem === null)).toBe(true);
    const spread = loads(placed, names(5));
    expect(Math.max(...spread) - Math.min(...spread)).toBeLessThanOrEqual(2);
  });

  it("says what fits nowhere, and lets those go first that users ask for", () => {
    const placed = decide([...many(4, { rank: 2 }), version(10, { rank: 0 }), version(11, { rank: 1 })], names(1), 3);
    const where = (n: number) => placed.get(version(n).loraName);
    expect([where(10)?.replicas, where(11)?.replicas]).toEqual([["r0"], ["r0"]]);
    const left = [0, 1, 2, 3].map(where).filter((each) => each?.replicas?.length === 0);
    expect(left).toHaveLength(3);
    expect(left[0]?.problem).toMatchObject({ code: "NO_ROOM", message: expect.stringContaining("room for 3") });
  });

  it("one that comes first takes the room of one that comes later", () => {
    const full = decide(many(6, { rank: 2 }), names(2), 3);
    const placed = decide([...after(many(6, { rank: 2 }), full), version(9, { rank: 0, current: [] })], names(2), 3);
    expect(placed.get(version(9).loraName)?.replicas).toHaveLength(1);
    expect(moves(full, placed)).toBe(1);
    expect([...placed.values()].filter(({ problem }) => problem?.code === "NO_ROOM")).toHaveLength(1);
  });

  it("follows pins, and says which cannot be", () => {
    const pinned = version(1, { placement: { mode: "pinned", pins: ["r1", "gone"] } });
    expect(decide([pinned], names(3), 16).get(pinned.loraName)).toEqual({
      replicas: ["r1", "gone"],
      problem: { code: "PIN_NOT_HELD", message: expect.stringContaining("no replica gone") },
    });
    const both = [version(1, { placement: { mode: "pinned", pins: ["r1"] } }), version(2, { placement: { mode: "pinned", pins: ["r1"] } })];
    const placed = decide(both, names(2), 1);
    expect([...placed.values()].map(({ replicas }) => (replicas ?? []).length).toSorted((a, b) => a - b)).toEqual([0, 1]);
  });

  it("spreads over as many as asked, also while everything fits", () => {
    const some = version(1, { placement: { mode: "spread", replicas: 2 } });
    expect(decide([some, ...many(1)], names(5), 16).get(some.loraName)?.replicas).toHaveLength(2);
    const greedy = version(1, { placement: { mode: "spread", replicas: 9 } });
    expect(decide([greedy], names(3), 16).get(greedy.loraName)).toMatchObject({ problem: { code: "FEWER_REPLICAS" } });
  });

  const setting = fc.oneof(
    { weight: 6, arbitrary: fc.constant<Placement>(all) },
    fc.record({ mode: fc.constant("spread" as const), replicas: fc.integer({ min: 1, max: 8 }) }),
    fc.record({ mode: fc.constant("pinned" as const), pins: fc.uniqueArray(fc.constantFrom(...names(8)), { minLength: 1, maxLength: 3 }) }),
  );
  const rank = fc.constantFrom(0 as const, 1 as const, 2 as const);
  const given = fc.record({
    versions: fc
      .array(fc.record({ placement: setting, rank, current: fc.option(fc.subarray(names(8))) }), { maxLength: 40 })
      .map((list) => list.map((each, n) => version(n, each))),
    replicas: fc.subarray(names(8), { minLength: 1 }),
    capacity: fc.integer({ min: 1, max: 12 }),
  });

  it("respects the capacity, leaves nothing out while there is room, and then rests (property)", () => {
    fc.assert(
      fc.property(given, ({ versions, replicas, capacity }) => {
        const placed = decide(versions, replicas, capacity);
        expect(Math.max(...loads(placed, replicas))).toBeLessThanOrEqual(
          Math.max(capacity, versions.length > capacity ? 0 : versions.length),
        );
        const full = loads(placed, replicas).every((load) => load >= capacity);
        for (const { placement, loraName } of versions) {
          const { replicas: on, problem } = placed.get(loraName) as Placed;
          expect(on === null || on.length > 0 || problem !== null).toBe(true);
          expect(placement.mode === "pinned" || on === null || on.length > 0 || full).toBe(true);
          expect(on === null || new Set(on).size === on.length).toBe(true);
        }
        // Decided again from where it led it rests: at once, or after one more step where room was tight.
        const second = decide(after(versions, placed), replicas, capacity);
        expect(decide(after(versions, second), replicas, capacity)).toEqual(second);
      }),
    );
  });

  it("moves little when a replica comes or goes, or a version is added (property)", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 4, max: 12 }),
        fc.integer({ min: 8, max: 32 }),
        fc.integer({ min: 30, max: 110 }),
        (count, capacity, percent) => {
          const versions = many(Math.max(capacity + 1, Math.floor((count * capacity * percent) / 300)));
          const replicas = names(count);
          const before = decide(versions, replicas, capacity);
          const standing = after(versions, before);
          const copies = loads(before, replicas).reduce((a, b) => a + b, 0);
          const perReplica = Math.ceil(copies / count);
          // Gone: what it held, and no more than one besides for rounding.
          const gone = decide(standing, replicas.slice(1), capacity);
          expect(moves(before, gone)).toBeLessThanOrEqual(Math.max(...loads(before, replicas)) + 1);
          // Come: its share; room for another copy of each, if there is that much; and copies that did not fit before.
          const extra = Math.max(
            0,
            Math.floor(((count + 1) * capacity) / versions.length) - Math.floor((count * capacity) / versions.length),
          );
          const come = decide(standing, names(count + 1), capacity);
          const share = Math.min(count, Math.floor((count * capacity) / versions.length));
          const lacking = Math.max(0, share * versions.length - copies);
          expect(moves(before, come)).toBeLessThanOrEqual(perReplica + extra * versions.length + lacking);
          // One version more: its own copies, and those it displaced.
          const more = decide([...standing, version(9999, { rank: 1, current: [] })], replicas, capacity);
          expect(moves(before, more)).toBeLessThanOrEqual(2 * count);
        },
      ),
      { examples: [[11, 16, 35]] },
    );
  });
});

it("places as a look at every version and replica for each step does (property)", () => {
  const placement = fc.oneof(
    fc.constant(all),
    fc.record({ mode: fc.constant("spread" as const), replicas: fc.integer({ min: 1, max: 5 }) }),
    fc.record({ mode: fc.constant("pinned" as const), pins: fc.subarray(names(8), { minLength: 1 }) }),
  );
  const one = fc.record({ placement, rank: fc.constantFrom(0, 1, 2, 3), current: fc.option(fc.subarray(names(9))) });
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: 7 }),
      fc.integer({ min: 1, max: 9 }),
      fc.array(one, { maxLength: 30 }),
      (count, capacity, versions) => {
        const asked = versions.map((over, n) => version(n, over as Partial<PlacedVersion>));
        const found = [...decide(asked, names(count), capacity)].map(([name, { replicas }]): [string, unknown] => [
          name,
          // Of a pinned one, replicas that are not there are told, too.
          asked.find(({ loraName }) => loraName === name)?.placement.mode === "pinned"
            ? replicas?.filter((replica) => names(count).includes(replica)).toSorted()
            : replicas,
        ]);
        const scanned = placeByScan({ engine: "e", versions: asked, replicas: names(count), capacity });
        expect(found).toEqual(
          [...scanned].map(([name, replicas]) => [
            name,
            asked.find(({ loraName }) => loraName === name)?.placement.mode === "pinned"
              ? replicas?.filter((replica) => names(count).includes(replica))
              : replicas,
          ]),
        );
      },
    ),
    { numRuns: 500 },
  );
});

describe("decideHandover", () => {
  const states = (of: Record<string, "proven" | "failed" | "pending" | "away">) => (replica: string) => of[replica] ?? "away";
  it("keeps the old place until the new one has it proven", () => {
    const handover = (of: Record<string, "proven" | "failed" | "pending" | "away">) => decideHandover(["b"], ["a"], ["a", "b"], states(of));
    expect(handover({ a: "proven", b: "pending" })).toEqual(["a", "b"]);
    expect(handover({ a: "proven", b: "away" })).toEqual(["a", "b"]);
    expect(handover({ a: "proven", b: "failed" })).toEqual(["a", "b"]);
    expect(handover({ a: "proven", b: "proven" })).toEqual(["b"]);
    expect(handover({ a: "pending", b: "pending" })).toEqual(["b"]);
  });
  it("from everywhere to some, and back", () => {
    expect(decideHandover(["b"], null, ["a", "b"], states({ a: "proven", b: "proven" }))).toEqual(["b"]);
    expect(decideHandover(["b"], null, ["a", "b"], states({ a: "proven", b: "pending" }))).toEqual(["a", "b"]);
    expect(decideHandover(null, ["b"], ["a", "b"], states({}))).toBe(null);
    expect(decideHandover([], ["a"], ["a"], states({ a: "proven" }))).toEqual([]);
  });
});
