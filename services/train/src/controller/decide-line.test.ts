import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { Slots } from "../launchers/launcher.ts";
import { decideLine, type Held, type LineQuotas, type ReadyRun, waitReasonOf } from "./decide-line.ts";

const unlimited: LineQuotas = { runsAtOnce: null, gpusAtOnce: null, highestPriority: null };
const none = new Map<string, Held>();
let made = 0;
const run = (tenant: string, at: number, more: Partial<ReadyRun> = {}): ReadyRun => {
  const runId = `r${String(made++).padStart(6, "0")}`;
  return { key: `${tenant}.${runId}`, tenant, runId, requestedAt: new Date(at).toISOString(), priority: 0, slots: 1, gpus: 1, ...more };
};
const line = (ready: ReadyRun[], room: Slots, more: { held?: Map<string, Held>; quotas?: (tenant: string) => LineQuotas } = {}) =>
  decideLine(ready, more.held ?? none, room, more.quotas ?? (() => unlimited));
const started = (standings: ReturnType<typeof decideLine>): string[] =>
  [...standings].flatMap(([key, { may }]) => (may === "start" ? [key] : []));
const slots = (free: number, total = Math.max(1, free)): Slots => ({ total, free });

describe("decideLine", () => {
  it("takes runs by priority, then the tenant that has the least, then by age", () => {
    const [a1, a2, a3] = [run("acme", 1), run("acme", 2), run("acme", 3)];
    const [b1, urgent] = [run("beta", 4), run("beta", 5, { priority: 3 })];
    const order = [...line([a3, b1, a2, urgent, a1], slots(0)).keys()];
    // beta has a run ahead when it is its second one's turn, so that acme's first is before it, and acme's second is as old as it is.
    expect(order).toEqual([urgent, a1, a2, b1, a3].map(({ key }) => key));
  });

  it("counts what a tenant has in use: who has the least is next, whoever came first", () => {
    const held = new Map([["acme", { runs: 2, gpus: 8, pending: 0 }]]);
    const [a, b] = [run("acme", 1), run("beta", 100)];
    expect(started(line([a, b], slots(1), { held }))).toEqual([b.key]);
  });

  it("lets no priority count above what the tenant may ask for", () => {
    const [a, b] = [run("acme", 2, { priority: 10 }), run("beta", 1)];
    expect([...line([a, b], slots(0), { quotas: () => ({ ...unlimited, highestPriority: 0 }) }).keys()]).toEqual([b.key, a.key]);
  });

  it("holds back a tenant that has used its quota, and nobody else; says the quota and the place", () => {
    const quotas = (tenant: string) => (tenant === "acme" ? { ...unlimited, runsAtOnce: 3 } : unlimited);
    const held = new Map([["acme", { runs: 1, gpus: 1, pending: 0 }]]);
    const theirs = Array.from({ length: 5 }, (_, n) => run("acme", n));
    const b = run("beta", 10);
    const standings = line([...theirs, b], slots(10), { held, quotas });
    expect(started(standings)).toEqual([b, theirs[0], theirs[1]].map((one) => one?.key));
    const reasons = theirs.slice(2).map(({ key }) => waitReasonOf(standings.get(key) ?? { may: "start" }));
    expect(reasons).toEqual([
      { reason: "TENANT_QUOTA", message: "quota runsAtOnce: 3 of this tenant's 3 runs at once are under way; next in line" },
      {
        reason: "TENANT_QUOTA",
        message: "quota runsAtOnce: 3 of this tenant's 3 runs at once are under way; 1 run of it waits before this one",
      },
      {
        reason: "TENANT_QUOTA",
        message: "quota runsAtOnce: 3 of this tenant's 3 runs at once are under way; 2 runs of it wait before this one",
      },
    ]);
  });

  it("says of GPUs how many are in use, and what to do about a run that never fits", () => {
    const quotas = () => ({ ...unlimited, gpusAtOnce: 8 });
    const held = new Map([["acme", { runs: 1, gpus: 6, pending: 0 }]]);
    const [big, huge, wide] = [run("acme", 1, { gpus: 4 }), run("beta", 1, { gpus: 9 }), run("gamma", 1, { gpus: 1, slots: 40 })];
    const standings = line([big, huge, wide], slots(10), { held, quotas });
    const why = (of: ReadyRun) => waitReasonOf(standings.get(of.key) ?? { may: "start" })?.message;
    expect(why(big)).toBe("quota gpusAtOnce: 6 of this tenant's 8 GPUs are in use, and this run asks for 4; next in line");
    expect(why(huge)).toMatch(/asks for 9 GPUs, and this tenant may use 8; cancel it/);
    expect(why(wide)).toMatch(/asks for 40 GPUs, and this installation trains on 10/);
  });

  it("keeps a tenant whose runs wait in the cluster from filling the scheduler's queue", () => {
    const theirs = Array.from({ length: 4 }, (_, n) => run("acme", n));
    const b = run("beta", 10);
    const held = new Map([["acme", { runs: 3, gpus: 3, pending: 2 }]]);
    const standings = line([...theirs, b], { total: 1e6, free: 1e6, pendingPerTenant: 3 }, { held });
    expect(started(standings)).toEqual([b, theirs[0]].map((one) => one?.key));
  });

  const someRun = fc.record({
    tenant: fc.constantFrom("acme", "beta", "gamma", "delta"),
    at: fc.nat(20),
    priority: fc.constantFrom(0, 0, 0, 1, -1),
    gpus: fc.constantFrom(0, 1, 1, 2, 8),
  });
  const runsOf = (script: { tenant: string; at: number; priority: number; gpus: number }[]) =>
    script.map(({ tenant, at, ...more }) => run(tenant, at, { ...more, slots: more.gpus }));
  const someHeld = fc
    .dictionary(fc.constantFrom("acme", "beta", "gamma"), fc.record({ runs: fc.nat(4), gpus: fc.nat(12), pending: fc.nat(2) }))
    .map((of) => new Map(Object.entries(of)));
  const someQuotas = fc.record({
    runsAtOnce: fc.option(fc.nat(5)),
    gpusAtOnce: fc.option(fc.nat(16)),
    highestPriority: fc.option(fc.nat(1)),
  });

  it("never starts more than fits into the slots and into each tenant's quotas, and leaves no place empty that the first in line could have", () => {
    fc.assert(
      fc.property(fc.array(someRun, { maxLength: 40 }), someHeld, someQuotas, fc.nat(20), (script, held, quotas, free) => {
        const ready = runsOf(script);
        const standings = line(ready, { total: 20, free }, { held, quotas: () => quotas });
        expect(new Set(standings.keys())).toEqual(new Set(ready.map(({ key }) => key)));
        const begun = ready.filter(({ key }) => standings.get(key)?.may === "start");
        const taken = begun.reduce((sum, one) => sum + one.slots, 0);
        expect(taken).toBeLessThanOrEqual(free);
        for (const [tenant, its] of Map.groupBy(begun, ({ tenant: of }) => of)) {
          const { runs, gpus } = held.get(tenant) ?? { runs: 0, gpus: 0 };
          expect(its.length + runs).toBeLessThanOrEqual(Math.max(quotas.runsAtOnce ?? Infinity, runs));
          const asked = its.reduce((sum, one) => sum + one.gpus, 0);
          // A run without GPUs may start whatever the others use.
          expect(asked === 0 ? 0 : asked + gpus).toBeLessThanOrEqual(quotas.gpusAtOnce ?? Infinity);
        }
        const first = ready.find(({ key }) => {
          const standing = standings.get(key);
          return standing?.may === "wait" && standing.for === "device" && standing.ahead === 0;
        });
        expect(first?.slots ?? Infinity).toBeGreaterThan(free - taken);
      }),
    );
  });

  it("depends on what is there, not on the order in which it was found", () => {
    fc.assert(
      fc.property(
        fc.array(someRun, { maxLength: 30 }),
        someHeld,
        someQuotas,
        fc.nat(20),
        fc.infiniteStream(fc.nat()),
        (script, held, quotas, free, keys) => {
          const ready = runsOf(script);
          const shuffled = ready.map((one) => [keys.next().value as number, one] as const).sort(([a], [b]) => a - b);
          const of = (those: ReadyRun[]) => [...line(those, { total: 20, free }, { held, quotas: () => quotas })];
          expect(of(shuffled.map(([, one]) => one))).toEqual(of(ready));
        },
      ),
    );
  });

  it("puts nobody further back when a run leaves the line", () => {
    fc.assert(
      fc.property(fc.array(someRun, { minLength: 2, maxLength: 30 }), someHeld, fc.nat(), (script, held, which) => {
        const ready = runsOf(script.map((one) => ({ ...one, gpus: 1 })));
        const places = (those: ReadyRun[]) => new Map([...line(those, slots(0, 20), { held }).keys()].map((key, place) => [key, place]));
        const before = places(ready);
        const after = places(ready.toSpliced(which % ready.length, 1));
        for (const [key, place] of after) expect(place).toBeLessThanOrEqual(before.get(key) ?? -1);
      }),
    );
  });

  it("gives tenants that all wait equal shares", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 6 }),
        fc.integer({ min: 1, max: 30 }),
        fc.array(fc.nat(50), { minLength: 6, maxLength: 6 }),
        (tenants, free, extra) => {
          const ready = Array.from({ length: tenants }, (_, n) =>
            Array.from({ length: 30 + (extra[n] ?? 0) }, (_one, at) => run(`t${n}`, at * (n + 1))),
          ).flat();
          const keys = started(line(ready, slots(free)));
          const shares = Array.from({ length: tenants }, (_, n) => keys.filter((key) => key.startsWith(`t${n}.`)).length);
          expect(Math.max(...shares) - Math.min(...shares)).toBeLessThanOrEqual(1);
        },
      ),
    );
  });

  it("starts every run within a bounded number of starts, however many others come after it", () => {
    const step = fc.record({
      arrivals: fc.array(fc.record({ tenant: fc.constantFrom("flood", "flood", "other"), gpus: fc.constantFrom(1, 2, 4) }), {
        maxLength: 6,
      }),
      ends: fc.nat(7),
    });
    const isStarted = fc.property(
      fc.array(step, { minLength: 40, maxLength: 60 }),
      fc.constantFrom(1, 4, 8),
      fc.nat(20),
      (script, gpus, at) => {
        const total = 8;
        const running: ReadyRun[] = [];
        const waiting: ReadyRun[] = Array.from({ length: 20 }, (_, n) => run("flood", n));
        const victim = run("small", at, { gpus, slots: gpus });
        waiting.push(victim);
        let clock = 100;
        for (const { arrivals, ends } of script) {
          for (const { tenant, gpus: asked } of arrivals) waiting.push(run(tenant, clock++, { gpus: asked, slots: asked }));
          const held = new Map<string, Held>();
          for (const one of running) {
            const of = held.get(one.tenant) ?? { runs: 0, gpus: 0, pending: 0 };
            held.set(one.tenant, { runs: of.runs + 1, gpus: of.gpus + one.gpus, pending: 0 });
          }
          const free = total - running.reduce((sum, one) => sum + one.slots, 0);
          const standings = line(waiting, { total, free }, { held });
          for (const key of started(standings)) {
            const index = waiting.findIndex((one) => one.key === key);
            running.push(...waiting.splice(index, 1));
          }
          if (running.includes(victim)) return true;
          if (running.length > 0) running.splice(ends % running.length, 1);
        }
        return false;
      },
    );
    expect(fc.check(isStarted)).toMatchObject({ failed: false });
  });
});
