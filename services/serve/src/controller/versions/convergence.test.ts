/** Which adapters are looked at when, and that nothing that was written stays without its events. */
import type { Bus, KvBucket, ReplicaEntry } from "@loraline/bus";
import type { AdapterState, ReplicaAdapter, ReplicaState } from "@loraline/contracts";
import { createLog, createTelemetry } from "@loraline/runtime";
import { describe, expect, it, onTestFinished } from "vitest";
import { createConvergence } from "./convergence.ts";
import { replica, withVersions } from "./versions-under-test.ts";

const key = "acme.pirate";
type Reports = Record<string, ReplicaAdapter["state"] | undefined>;

function converging() {
  const at = {
    state: withVersions(1) as AdapterState | undefined,
    reports: {} as Reports,
    looks: 0,
    published: [] as string[],
    isBusAway: false,
  };
  const publish = async ({ type }: { type: string }) => {
    if (at.isBusAway) throw new Error("no bus");
    at.published.push(type);
  };
  const bus = { publish, first: async () => undefined, last: async () => undefined, history: async () => [] } as unknown as Bus;
  const adapters = {
    get: async () => at.state && { key, value: at.state, revision: 1 },
    async change(_key: string, update: (state: AdapterState | undefined) => AdapterState | undefined) {
      at.state = update(at.state) ?? at.state;
      return at.state;
    },
  } as unknown as KvBucket<AdapterState>;
  const entryOf = (name: string): ReplicaEntry | undefined => {
    const held = at.reports[name.slice("local.".length)];
    return { held: () => held && { state: held } } as unknown as ReplicaEntry;
  };
  const log = createLog({ service: "test", level: "silent" });
  const convergence = createConvergence({
    bus,
    log,
    telemetry: createTelemetry({ service: "test" }),
    adapters,
    states: { get: () => at.state },
    replicas: {
      of(state): ReplicaState[] {
        at.looks += 1;
        const now = { at: new Date().toISOString() };
        return Object.entries(at.reports).map(([name, held]) => replica(name, state, held === undefined ? {} : { 1: held }, now));
      },
      table: { get: entryOf },
    },
    engines: { get: () => undefined },
    canaries: { move: async () => {} },
    keeper: { isDue: (of) => of !== key, keep: async () => {} },
  });
  onTestFinished(() => convergence[Symbol.asyncDispose]());
  /** Everything that does not wait for time is done. */
  const idle = async (): Promise<void> => {
    for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve));
  };
  return { at, convergence, idle };
}

describe("a version that is not served yet", () => {
  it("is served when the replica that it waits for has proven it, and not looked at for other replicas' reports", async () => {
    const { at, convergence, idle } = converging();
    at.reports = { a: "loading", b: "loading", c: "loading" };
    convergence.onAdapter(key, at.state, undefined);
    await idle();
    const looks = at.looks;
    at.reports = { ...at.reports, b: "proven", c: "proven" };
    convergence.onHolding("local.b", key);
    convergence.onReplica("local.c");
    await idle();
    expect(at.looks).toBe(looks);
    at.reports = { ...at.reports, a: "proven" };
    convergence.onHolding("local.a", key);
    await idle();
    expect(at.state).toMatchObject({ alias: 1, versions: [{ servedOn: 3, servedOf: 3 }] });
    expect(at.published).toEqual(["adapter.promoted.v1", "run.served.v1"]);
  });

  it("is looked at when any replica says no", async () => {
    const { at, convergence, idle } = converging();
    at.reports = { a: "loading", b: "loading" };
    convergence.onAdapter(key, at.state, undefined);
    await idle();
    const looks = at.looks;
    at.reports = { ...at.reports, b: "refused" };
    convergence.onHolding("local.b", key);
    await idle();
    expect(at.looks).toBeGreaterThan(looks);
  });

  it("has its events published later when the bus was away after it was written", async () => {
    const { at, convergence, idle } = converging();
    at.reports = { a: "proven" };
    at.isBusAway = true;
    convergence.onAdapter(key, at.state, undefined);
    await idle();
    expect(at.published).toEqual([]);
    expect(at.state?.alias).toBe(1);
    at.isBusAway = false;
    convergence.consider(key);
    await idle();
    expect(at.published).toEqual(["adapter.promoted.v1", "run.served.v1"]);
    convergence.consider(key);
    await idle();
    expect(at.published).toHaveLength(2);
  });
});

it("an adapter whose versions are all served is not looked at for reports", async () => {
  const { at, convergence, idle } = converging();
  at.reports = { a: "proven" };
  convergence.onAdapter(key, at.state, undefined);
  await idle();
  const [before, looks] = [withVersions(1), at.looks];
  convergence.onAdapter(key, at.state, before);
  convergence.onHolding("local.a", key);
  convergence.onReplica("local.a");
  convergence.considerOpen();
  await idle();
  expect(at.looks).toBe(looks);
});
