import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type AgentView, decideAdapters, type HeldAdapter, unloadGraceMs, type WantedAdapter } from "./decide-adapters.ts";
import { engineNameOf } from "./engine-names.ts";

const adapter = (n: number, version = 1): WantedAdapter => {
  const digest = `sha256:${String(n).padStart(64, "0")}` as const;
  const ref = { kind: "adapter" as const, digest, size: 1 };
  const id = { tenant: "acme", adapter: `a${n}`, version, digest };
  return { ...id, engineName: engineNameOf(id), manifest: ref, evidence: { ...ref, kind: "evidence" }, trace: null };
};
const pathOf = ({ digest }: { digest: string }): string => `/adapters/${digest}`;
const now = 1_000_000;
const view = (over: Partial<AgentView> = {}): AgentView => ({
  wanted: new Map(),
  engine: { incarnation: "i1", listed: new Map() },
  held: new Map(),
  inWork: new Set(),
  unwantedSince: new Map(),
  spoiled: new Set(),
  pathOf,
  ...over,
});
const one = adapter(1);
const wanted = new Map([[one.engineName, one]]);
const listed = { incarnation: "i1", listed: new Map([[one.engineName, pathOf(one)]]) };
const held = (state: HeldAdapter["state"], over: Partial<HeldAdapter> = {}) =>
  new Map([[one.engineName, { incarnation: "i1", state, retryAt: 0, ...over }]]);
const kinds = (over: Partial<AgentView>) => decideAdapters(view(over), now).map(({ kind }) => kind);

describe("decideAdapters", () => {
  it("loads what is wanted, proves what is listed, and then rests", () => {
    expect(kinds({ wanted })).toEqual(["load"]);
    expect(kinds({ wanted, engine: listed })).toEqual(["prove"]);
    expect(kinds({ wanted, engine: listed, held: held("proven") })).toEqual([]);
  });

  it("does nothing about what it could not read", () => {
    expect(kinds({ wanted: undefined, engine: listed })).toEqual([]);
    expect(kinds({ wanted, engine: undefined, held: held("proven") })).toEqual([]);
  });

  it("proves again what another incarnation had proven", () => {
    expect(kinds({ wanted, engine: { ...listed, incarnation: "i2" }, held: held("proven") })).toEqual(["prove"]);
    expect(kinds({ wanted, engine: { incarnation: "i2", listed: new Map() }, held: held("refused") })).toEqual(["load"]);
  });

  it("loads again what the engine lost", () => {
    expect(kinds({ wanted, held: held("proven") })).toEqual(["load"]);
  });

  it("rests between attempts, and lets a refused one be", () => {
    expect(decideAdapters(view({ wanted, held: held("retrying", { retryAt: now + 500 }) }), now)).toEqual([
      { kind: "wake", at: now + 500 },
    ]);
    expect(kinds({ wanted, held: held("retrying", { retryAt: now }) })).toEqual(["load"]);
    expect(kinds({ wanted, held: held("refused") })).toEqual([]);
    expect(kinds({ wanted, engine: listed, held: held("refused") })).toEqual(["unload"]);
  });

  it("unloads what came from another path or whose files changed, before it loads it anew", () => {
    expect(kinds({ wanted, engine: { incarnation: "i1", listed: new Map([[one.engineName, "/elsewhere"]]) } })).toEqual(["unload"]);
    expect(kinds({ wanted, engine: listed, held: held("proven"), spoiled: new Set([one.engineName]) })).toEqual(["unload"]);
  });

  it("unloads what nobody wants, after a grace; and leaves alone what is not its own", () => {
    const since = (at: number) => new Map([[one.engineName, at]]);
    expect(decideAdapters(view({ engine: listed, unwantedSince: since(now) }), now)).toEqual([{ kind: "wake", at: now + unloadGraceMs }]);
    expect(kinds({ engine: listed, unwantedSince: since(now - unloadGraceMs) })).toEqual(["unload"]);
    expect(kinds({ engine: { incarnation: "i1", listed: new Map([["sql-lora", "/x"]]) } })).toEqual([]);
  });

  /** An engine and an agent as simple as can be: what is decided is done, some of it fails. */
  it("converges from any state: everything wanted and able is proven, nothing else is listed (property)", () => {
    const all = Array.from({ length: 6 }, (_, n) => adapter(n));
    const names = all.map(({ engineName }) => engineName);
    const subset = fc.subarray(names);
    fc.assert(
      fc.property(
        subset,
        subset,
        subset,
        subset,
        subset,
        subset,
        fc.infiniteStream(fc.boolean()),
        (want, list, misplaced, proven, spoiledNames, hopeless, luck) => {
          const wantedNow = new Map(all.filter(({ engineName }) => want.includes(engineName)).map((each) => [each.engineName, each]));
          const path = (name: string) => pathOf(all.find(({ engineName }) => engineName === name) as WantedAdapter);
          const engine = {
            incarnation: "i1",
            listed: new Map(list.map((name) => [name, misplaced.includes(name) ? "/elsewhere" : path(name)])),
          };
          const memory = new Map<string, HeldAdapter>(
            proven.map((name, i) => [name, { incarnation: i % 2 === 0 ? "i1" : "i0", state: "proven", retryAt: 0 }]),
          );
          const spoiled = new Set(spoiledNames.filter((name) => list.includes(name)));
          const unwantedSince = new Map(names.map((name) => [name, 0]));
          let time = now;
          for (let round = 0; round < 200; round++) {
            const actions = decideAdapters(view({ wanted: wantedNow, engine, held: memory, spoiled, unwantedSince }), time);
            if (actions.length === 0) break;
            time += 1000;
            for (const action of actions) {
              if (action.kind === "wake") continue;
              if (action.kind === "unload") {
                engine.listed.delete(action.engineName);
                spoiled.delete(action.engineName);
                continue;
              }
              const name = action.wanted.engineName;
              const lucky = luck.next().value;
              if (action.kind === "load") {
                if (hopeless.includes(name)) memory.set(name, { incarnation: "i1", state: "refused", retryAt: 0 });
                else if (lucky) engine.listed.set(name, path(name));
                else memory.set(name, { incarnation: "i1", state: "retrying", retryAt: time + 1500 });
              } else memory.set(name, { incarnation: "i1", state: lucky ? "proven" : "retrying", retryAt: time + 1500 });
            }
          }
          expect(decideAdapters(view({ wanted: wantedNow, engine, held: memory, spoiled, unwantedSince }), time)).toEqual([]);
          for (const name of want) {
            const state = memory.get(name)?.state;
            expect(state === "proven" ? engine.listed.get(name) === path(name) : state === "refused" && !engine.listed.has(name)).toBe(
              true,
            );
          }
          for (const name of engine.listed.keys()) expect(want).toContain(name);
        },
      ),
      { numRuns: 300 },
    );
  });

  it("one adapter's state never changes what is done about another (property)", () => {
    const state = fc.constantFrom<HeldAdapter["state"]>("proven", "refused", "retrying");
    fc.assert(
      fc.property(state, state, fc.boolean(), fc.boolean(), (first, second, isListed, busy) => {
        const two = adapter(2);
        const both = new Map([...wanted, [two.engineName, two]]);
        const heldBoth = (state1: HeldAdapter["state"]) =>
          new Map<string, HeldAdapter>([
            [one.engineName, { incarnation: "i1", state: state1, retryAt: now + 99 }],
            [two.engineName, { incarnation: "i1", state: second, retryAt: 0 }],
          ]);
        const engine = { incarnation: "i1", listed: new Map(isListed ? [[two.engineName, pathOf(two)]] : []) };
        const about = (state1: HeldAdapter["state"]) =>
          decideAdapters(view({ wanted: both, engine, held: heldBoth(state1), inWork: new Set(busy ? [one.engineName] : []) }), now).filter(
            (action) => action.kind !== "wake" && ("wanted" in action ? action.wanted.engineName : action.engineName) === two.engineName,
          );
        expect(about(first)).toEqual(about("proven"));
      }),
    );
  });
});
