import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  type AgentAction,
  type AgentView,
  decideAdapter,
  decideFault,
  drainLimits,
  type HeldAdapter,
  type Leaving,
  quarantineAfter,
  type WantedAdapter,
} from "./decide-adapters.ts";
import { loraNameOf } from "../../lora-names.ts";

const adapter = (n: number, version = 1): WantedAdapter => {
  const digest = `sha256:${String(n).padStart(64, "0")}` as const;
  const ref = { kind: "adapter" as const, digest, size: 1 };
  const id = { tenant: "acme", adapter: `a${n}`, version, digest };
  return { ...id, loraName: loraNameOf(id), manifest: ref, evidence: { ...ref, kind: "evidence" }, trace: null, rank: 0 };
};
const pathOf = ({ digest }: { digest: string }): string => `/adapters/${digest}`;
const now = 1_000_000;
const view = (over: Partial<AgentView> = {}): AgentView => ({
  wanted: new Map(),
  isUnsure: false,
  engine: { incarnation: "i1", listed: new Map() },
  held: new Map(),
  inWork: new Set(),
  leaving: new Map(),
  spoiled: new Map(),
  requests: () => "none",
  pathOf,
  ...over,
});
const one = adapter(1);
const wanted = new Map([[one.loraName, one]]);
const listed = { incarnation: "i1", listed: new Map([[one.loraName, pathOf(one)]]) };
const held = (state: HeldAdapter["state"], over: Partial<HeldAdapter> = {}) =>
  new Map([[one.loraName, { incarnation: "i1", state, retryAt: 0, ...over }]]);
const leaving = (since: number, retryAt = 0) => new Map([[one.loraName, { since, retryAt }]]);
/** Everything that is to be done, whatever the order. */
const decideAdapters = (seen: AgentView, time: number): AgentAction[] => {
  const names = new Set([...(seen.wanted?.keys() ?? []), ...(seen.engine?.listed.keys() ?? [])]);
  return [...names].flatMap((name) => decideAdapter(seen, name, time) ?? []);
};
const kinds = (over: Partial<AgentView>) => decideAdapters(view(over), now).map(({ kind }) => kind);

describe("decideAdapters", () => {
  it("loads what is wanted, proves what is listed, and then rests", () => {
    expect(kinds({ wanted })).toEqual(["load"]);
    expect(kinds({ wanted, engine: listed })).toEqual(["prove"]);
    expect(kinds({ wanted, engine: listed, held: held("proven") })).toEqual([]);
  });

  it("does nothing about what it could not read", () => {
    expect(kinds({ wanted: undefined, engine: listed, leaving: leaving(0) })).toEqual([]);
    expect(kinds({ wanted, engine: undefined, held: held("proven") })).toEqual([]);
  });

  it("unloads nothing while something that is wanted cannot be read", () => {
    expect(kinds({ engine: listed, leaving: leaving(0) })).toEqual(["unload"]);
    expect(kinds({ engine: listed, leaving: leaving(0), isUnsure: true })).toEqual(["wake"]);
  });

  it("proves again what another incarnation had proven", () => {
    expect(kinds({ wanted, engine: { ...listed, incarnation: "i2" }, held: held("proven") })).toEqual(["prove"]);
    for (const state of ["refused", "quarantined"] as const) {
      const before = held(state, { retryAt: now + 99_999 });
      expect(kinds({ wanted, engine: { incarnation: "i2", listed: new Map() }, held: before })).toEqual(["load"]);
    }
  });

  it("loads again what the engine lost", () => {
    expect(kinds({ wanted, held: held("proven") })).toEqual(["load"]);
  });

  it.each(["retrying", "quarantined"] as const)("rests between attempts while %s", (state) => {
    expect(decideAdapters(view({ wanted, held: held(state, { retryAt: now + 500 }) }), now)).toEqual([{ kind: "wake", at: now + 500 }]);
    expect(kinds({ wanted, held: held(state, { retryAt: now }) })).toEqual(["load"]);
  });

  it("lets a refused one be, unloaded", () => {
    expect(kinds({ wanted, held: held("refused") })).toEqual([]);
    expect(kinds({ wanted, engine: listed, held: held("refused") })).toEqual(["unload"]);
  });

  it("unloads what came from another path or whose files changed, before it loads it anew", () => {
    expect(kinds({ wanted, engine: { incarnation: "i1", listed: new Map([[one.loraName, "/elsewhere"]]) } })).toEqual(["unload"]);
    const changed = { wanted, engine: listed, held: held("proven") };
    expect(kinds({ ...changed, spoiled: new Map([[one.loraName, now]]), requests: () => "none" })).toEqual(["unload"]);
    expect(kinds({ ...changed, spoiled: new Map([[one.loraName, now]]), requests: () => "unknown" })).toEqual(["wake"]);
    // No request can be using files that were found spoiled before anybody was told of them.
    expect(kinds({ ...changed, spoiled: new Map([[one.loraName, 0]]), requests: () => "unknown" })).toEqual(["unload"]);
    const busy = { ...changed, requests: () => "some" as const };
    expect(kinds({ ...busy, spoiled: new Map([[one.loraName, now]]) })).toEqual(["wake"]);
    expect(kinds({ ...busy, spoiled: new Map([[one.loraName, now - drainLimits.spoiledMs]]) })).toEqual(["unload"]);
  });

  it("unloads what nobody wants after a grace, when no request is in flight", () => {
    const { graceMs, unknownMs, mostMs, pollMs } = drainLimits;
    const unwanted = (age: number, requests: "none" | "some" | "unknown") =>
      decideAdapters(view({ engine: listed, leaving: leaving(now - age), requests: () => requests }), now);
    const unload = [{ kind: "unload", loraName: one.loraName, reason: expect.any(String) as string }];
    for (const requests of ["none", "some", "unknown"] as const) {
      expect(unwanted(0, requests)).toEqual([{ kind: "wake", at: now + graceMs }]);
    }
    expect(unwanted(graceMs, "none")).toEqual(unload);
    expect(unwanted(graceMs, "some")).toEqual([{ kind: "wake", at: now + pollMs }]);
    expect(unwanted(unknownMs, "some")).toEqual([{ kind: "wake", at: now + pollMs }]);
    expect(unwanted(mostMs, "some")).toEqual(unload);
    expect(unwanted(unknownMs - 1, "unknown")).toEqual([{ kind: "wake", at: now + 1 }]);
    expect(unwanted(unknownMs, "unknown")).toEqual(unload);
  });

  it("asks only for what gateways said after the name was taken out of routing", () => {
    const asked: number[] = [];
    const requests = (_: string, since: number) => (asked.push(since), "none" as const);
    decideAdapters(view({ engine: listed, leaving: leaving(now - 60_000), requests }), now);
    expect(asked).toEqual([now - 60_000]);
  });

  it("rests after an unload that the engine refused", () => {
    expect(decideAdapters(view({ engine: listed, leaving: leaving(0, now + 700) }), now)).toEqual([{ kind: "wake", at: now + 700 }]);
    const refused = view({ wanted, engine: listed, held: held("refused"), leaving: leaving(0, now + 700) });
    expect(decideAdapters(refused, now)).toEqual([{ kind: "wake", at: now + 700 }]);
  });

  it("leaves alone what is not its own", () => {
    expect(kinds({ engine: { incarnation: "i1", listed: new Map([["sql-lora", "/x"]]) } })).toEqual([]);
  });
});

describe("decideFault", () => {
  const problem = { code: "X", message: "x" };
  it("takes what the files say as true everywhere, and quarantines what does not pass", () => {
    expect(decideFault({ of: "adapter", problem }, 1)).toEqual({ state: "refused", blame: "adapter", afterMs: 0 });
    for (const of of ["replica", "unknown"] as const) {
      const states = Array.from({ length: quarantineAfter + 1 }, (_, i) => decideFault({ of, problem }, i + 1));
      expect(states.map(({ state }) => state)).toEqual([...Array(quarantineAfter - 1).fill("retrying"), "quarantined", "quarantined"]);
      expect(states.every(({ blame }) => blame === (of === "replica" ? "replica" : null))).toBe(true);
    }
  });
  it("never spins, and never waits for ever (property)", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 10_000 }),
        fc.option(fc.integer({ min: 0, max: 60_000 }), { nil: undefined }),
        (attempts, asked) => {
          const fault = asked === undefined ? { of: "unknown" as const, problem } : { of: "replica" as const, problem, afterMs: asked };
          const { afterMs } = decideFault(fault, attempts);
          expect(afterMs).toBeLessThanOrEqual(300_000);
          expect(attempts <= 3 || afterMs >= 500).toBe(true);
        },
      ),
    );
  });
});

/**
 * An engine that fails in every way there is, and an agent as simple as can be: what is decided is done, one thing at a time per
 * name. Luck is a stream of numbers; from some time on the engine behaves, and then everything must come right.
 */
describe("an agent that follows the decisions", () => {
  const all = Array.from({ length: 5 }, (_, n) => adapter(n));
  const names = all.map(({ loraName }) => loraName);
  const byName = new Map(all.map((each) => [each.loraName, each]));
  const path = (name: string) => pathOf(byName.get(name) as WantedAdapter);
  const subset = fc.subarray(names);
  type Outcome = "done" | "refused" | "lost-done" | "lost";
  const outcomes: Outcome[] = ["done", "refused", "lost-done", "lost"];

  it("converges from any state, whatever fails on the way: never two loads of a name, never unloads the wanted and proven (property)", () => {
    fc.assert(
      fc.property(
        fc.record({ want: subset, list: subset, misplaced: subset, believed: subset, spoiledNames: subset, hopeless: subset }),
        fc.array(fc.nat({ max: 1_000_000 }), { minLength: 400, maxLength: 400 }),
        fc.integer({ min: 0, max: 60 }),
        ({ want, list, misplaced, believed, spoiledNames, hopeless }, luck, badRounds) => {
          const violations: string[] = [];
          const check = (holds: boolean, otherwise: string): void => {
            if (!holds) violations.push(otherwise);
          };
          let drawn = 0;
          const draw = (of: number): number => (luck[drawn++ % luck.length] ?? 0) % of;
          const truth = {
            incarnation: 1,
            listed: new Map(list.map((name) => [name, misplaced.includes(name) ? "/elsewhere" : path(name)])),
          };
          const wantedNow = new Map(want.map((name) => [name, byName.get(name) as WantedAdapter]));
          const memory = new Map<string, HeldAdapter & { attempts: number }>(
            believed.map((name, i) => [name, { incarnation: String(i % 2), state: "proven", retryAt: 0, attempts: 0 }]),
          );
          const spoiled = new Map(spoiledNames.filter((name) => list.includes(name)).map((name) => [name, 0]));
          const leavingNow = new Map<string, Leaving & { attempts: number }>();
          let seen: AgentView["engine"];
          let time = now;
          /** Names whose proof in this process is true; unloading one that is wanted and unspoiled would be a fault of ours. */
          const trulyProven = () =>
            new Set(
              [...memory]
                .filter(([, { incarnation, state }]) => incarnation === String(truth.incarnation) && state === "proven")
                .map(([name]) => name),
            );

          const read = (): void => {
            seen = { incarnation: String(truth.incarnation), listed: new Map(truth.listed) };
            for (const name of truth.listed.keys())
              if (!wantedNow.has(name) && !leavingNow.has(name)) leavingNow.set(name, { since: time, retryAt: 0, attempts: 0 });
            for (const name of leavingNow.keys()) if (!truth.listed.has(name)) leavingNow.delete(name);
          };
          const fail = (name: string, of: "unknown" | "replica"): void => {
            const known = memory.get(name);
            const attempts = (known?.incarnation === seen?.incarnation ? (known?.attempts ?? 0) : 0) + 1;
            const { state, afterMs } = decideFault({ of, problem: { code: "X", message: "x" } }, attempts);
            memory.set(name, { incarnation: seen?.incarnation ?? "", state, retryAt: time + afterMs, attempts });
          };

          for (let round = 0; round < 400; round++) {
            const bad = round < badRounds;
            if (bad && draw(12) === 0) {
              truth.incarnation += 1;
              truth.listed.clear();
            }
            if (bad && draw(3) === 0) seen = undefined;
            else read();
            const now_ = view({
              wanted: bad && draw(10) === 0 ? undefined : wantedNow,
              engine: seen,
              held: memory,
              leaving: leavingNow,
              spoiled,
            });
            const requests = (): "none" | "some" | "unknown" => (bad ? (["none", "some", "unknown"] as const)[draw(3)]! : "none");
            const actions = decideAdapters({ ...now_, requests }, time);
            if (now_.wanted === undefined || seen === undefined) check(actions.length === 0, "acts on what it could not read");
            for (const action of actions) {
              if (action.kind === "wake") {
                check(action.at > time, "wakes at once");
                continue;
              }
              const name = action.kind === "unload" ? action.loraName : action.wanted.loraName;
              // The process may have been replaced between the look and the step.
              const sameProcess = seen?.incarnation === String(truth.incarnation);
              const outcome: Outcome = bad ? outcomes[draw(4)]! : "done";
              if (action.kind === "load") {
                check(!(sameProcess && truth.listed.has(name)), "loads what is loaded");
                check(wantedNow.has(name), "loads what nobody wants");
                if (hopeless.includes(name)) fail(name, "unknown");
                else {
                  if (outcome === "done" || outcome === "lost-done") truth.listed.set(name, path(name));
                  spoiled.delete(name);
                  if (outcome !== "done") fail(name, outcome === "refused" ? "unknown" : "replica");
                }
              } else if (action.kind === "prove") {
                if (outcome !== "done" || !truth.listed.has(name)) fail(name, "replica");
                else memory.set(name, { incarnation: String(truth.incarnation), state: "proven", retryAt: 0, attempts: 0 });
              } else {
                const fine = wantedNow.has(name) && trulyProven().has(name) && truth.listed.get(name) === path(name) && !spoiled.has(name);
                check(!fine, "unloads what is wanted and proven");
                if (outcome === "done" || outcome === "lost-done") {
                  truth.listed.delete(name);
                  spoiled.delete(name);
                  leavingNow.delete(name);
                } else {
                  const attempts = (leavingNow.get(name)?.attempts ?? 0) + 1;
                  const { afterMs } = decideFault({ of: "replica", problem: { code: "X", message: "x" } }, attempts);
                  leavingNow.set(name, { since: leavingNow.get(name)?.since ?? 0, retryAt: time + afterMs, attempts });
                }
              }
              // What a step changed, or may have changed, is seen before more is decided about it: one step per name and look.
            }
            time += bad ? 1000 : 30_000;
            if (!bad && actions.length === 0) break;
          }
          read();
          for (const name of want) {
            const known = memory.get(name);
            const given = hopeless.includes(name) && !truth.listed.has(name);
            const proven =
              known?.state === "proven" && known.incarnation === String(truth.incarnation) && truth.listed.get(name) === path(name);
            check(given ? known?.state === "retrying" || known?.state === "quarantined" : proven, `does not converge on ${name}`);
          }
          for (const name of truth.listed.keys()) check(want.includes(name), `leaves ${name} loaded`);
          expect(violations).toEqual([]);
        },
      ),
      { numRuns: 300 },
    );
  });

  it("one adapter's state never changes what is done about another (property)", () => {
    const state = fc.constantFrom<HeldAdapter["state"]>("proven", "refused", "retrying", "quarantined");
    const two = adapter(2);
    fc.assert(
      fc.property(state, state, state, fc.boolean(), fc.boolean(), (first, other, second, isListed, busy) => {
        const about = (of: HeldAdapter["state"], inWork: boolean) =>
          decideAdapter(
            view({
              wanted: new Map([...wanted, [two.loraName, two]]),
              engine: { incarnation: "i1", listed: new Map(isListed ? [[two.loraName, pathOf(two)]] : []) },
              held: new Map<string, HeldAdapter>([
                [one.loraName, { incarnation: "i1", state: of, retryAt: now + 99 }],
                [two.loraName, { incarnation: "i1", state: second, retryAt: 0 }],
              ]),
              inWork: new Set(inWork ? [one.loraName] : []),
            }),
            two.loraName,
            now,
          );
        expect(about(first, busy)).toEqual(about(other, !busy));
      }),
    );
  });
});
