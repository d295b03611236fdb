/** The table finds by its index what one finds by looking at everything, whatever happens in which order. */
import {
  type AdapterState,
  type BucketDef,
  buckets,
  type EngineRecord,
  type ReplicaHolding,
  type ReplicaReport,
} from "@loraline/contracts";
import type { Bus } from "@loraline/bus";
import fc from "fast-check";
import { expect, it } from "vitest";
import { adapterOf, engineRecord, heldBy, replicaOf, versionOf } from "../gateway-under-test.ts";
import { type Candidates, preferenceOf, type ReplicaView } from "./decide-replicas.ts";
import { decideRoute, type RoutingView } from "./decide-route.ts";
import { createRoutingTable } from "./routing-table.ts";
import { viewByScan } from "./routing-under-test.ts";

/** KV as a map; each write is told to the watchers at once. */
function tableUnderTest(random?: () => number) {
  let time = 1_000_000;
  const watchers = new Map<string, (key: string, value: unknown) => void>();
  const bus = {
    async bucket({ name, value: schema }: BucketDef) {
      return {
        async watch({ onChange, onReady }: { onChange(key: string, value: unknown): void; onReady?(): void }) {
          watchers.set(name, (key, value) => onChange(key, value === undefined ? undefined : schema.parse(value)));
          onReady?.();
        },
      };
    },
  } as unknown as Pick<Bus, "bucket">;
  const table = createRoutingTable({ bus, signal: new AbortController().signal, now: () => time, random });
  return {
    table,
    write: ({ name }: BucketDef, key: string, value: unknown) => watchers.get(name)?.(key, value),
    now: () => time,
    pass: (ms: number) => void (time += ms),
  };
}

const names = ["a", "b", "c"];
const engines = ["local", "other"];
const adapterKeys = ["acme.pirate", "acme.parrot", "globex.pirate"];
const stateOf = (key: string, versions: readonly number[], engine: string): AdapterState => {
  const [tenant = "", adapter = ""] = key.split(".");
  const made = versions.map((version) =>
    versionOf(tenant, adapter, version, {
      rank: version * 4,
      status: version % 3 === 0 ? "retired" : "desired",
      unplaced: version === 2 ? { code: "NO_ROOM", message: "no room" } : null,
    }),
  );
  return adapterOf(tenant, adapter, made, { engine });
};

/** What happened, applied to a model that a scan looks at. */
type Step =
  | { kind: "engine"; engine: string; there: boolean; tenants: string[] | null }
  | { kind: "adapter"; key: string; engine: string; versions: number[] | null }
  | { kind: "report"; engine: string; replica: string; incarnation: string; ready: boolean; there: boolean }
  | { kind: "holding"; engine: string; replica: string; key: string; incarnation: string; versions: number[] | null; proven: boolean }
  | { kind: "begin"; model: string }
  | { kind: "end" }
  | { kind: "unreachable"; model: string }
  | { kind: "time"; ms: number };

const of = fc.constantFrom;
const versions = fc.uniqueArray(of(1, 2, 3), { maxLength: 3 });
const models = ["base", ...adapterKeys.map((key) => key.replace(".", "/")), "acme/pirate@1", "acme/pirate@2"];
const step: fc.Arbitrary<Step> = fc.oneof(
  fc.record({
    kind: of("engine" as const),
    engine: of(...engines),
    there: fc.boolean(),
    tenants: of<string[] | null>(null, ["acme"], ["globex"]),
  }),
  fc.record({ kind: of("adapter" as const), key: of(...adapterKeys), engine: of(...engines), versions: fc.option(versions) }),
  fc.record({
    kind: of("report" as const),
    engine: of(...engines),
    replica: of(...names),
    incarnation: of("1", "2"),
    ready: fc.boolean(),
    there: fc.boolean(),
  }),
  fc.record({
    kind: of("holding" as const),
    engine: of(...engines),
    replica: of(...names),
    key: of(...adapterKeys),
    incarnation: of("1", "2"),
    versions: fc.option(versions),
    proven: fc.boolean(),
  }),
  fc.record({ kind: of("begin" as const), model: of(...models) }),
  fc.record({ kind: of("end" as const) }),
  fc.record({ kind: of("unreachable" as const), model: of(...models) }),
  fc.record({ kind: of("time" as const), ms: of(1, 4000, 16_000) }),
);

function createModel(now: () => number) {
  const records = new Map<string, EngineRecord>();
  const adapters = new Map<string, AdapterState>();
  const reports = new Map<string, { report: ReplicaReport; heardAt: number }>();
  const holdings = new Map<string, { replica: string; holding: ReplicaHolding }>();
  const inFlight = new Map<string, number>();
  const unreachableAt = new Map<string, number>();
  const view = (): RoutingView =>
    viewByScan({
      engines: [...records.values()],
      adapters,
      replicas: [...reports].map(([key, { report, heardAt }]): ReplicaView => {
        const held = [...holdings.values()]
          .filter(({ replica, holding }) => replica === key && holding.incarnation === report.incarnation)
          .flatMap(({ holding }) => holding.adapters);
        return {
          state: report,
          proven: new Set(held.filter(({ state }) => state === "proven").map(({ engineName }) => engineName)),
          held: (name) => held.find(({ engineName }) => engineName === name),
          fresh: heardAt > (unreachableAt.get(key) ?? Number.NEGATIVE_INFINITY) && now() - heardAt <= 15_000,
          inFlight: inFlight.get(key) ?? 0,
        };
      }),
    });
  return { records, adapters, reports, holdings, inFlight, unreachableAt, view };
}

const seen = ({ replicas, load }: Candidates) => ({
  // Without a candidate nobody asks for the load. How long an engine was away before is remembered, and no scan finds it.
  load: replicas.length === 0 ? null : { ...load, lastAwayMs: undefined },
  replicas: replicas
    .map(({ state, proven, fresh, inFlight }) => ({
      key: `${state.engine}.${state.replica}`,
      incarnation: state.incarnation,
      ready: state.ready,
      proven: proven.size,
      fresh,
      inFlight,
    }))
    .toSorted((a, b) => (a.key < b.key ? -1 : 1)),
});
const everythingOf = (view: RoutingView) => ({
  engines: view.engines.map(({ engine }) => engine).toSorted(),
  ofBase: view
    .enginesOf("base")
    .map(({ engine }) => engine)
    .toSorted(),
  adapters: adapterKeys.map((key) => {
    const [tenant = "", adapter = ""] = key.split(".");
    const known = view.adapter({ tenant, adapter });
    return [known?.engine, known?.alias, known?.versions.map(({ engineName, status }) => [engineName, status])];
  }),
  ofTenants: ["acme", "globex"].map((tenant) => [...view.adaptersOf(tenant)].map(({ adapter }) => adapter).toSorted()),
  versionsOn: engines.map((engine) => view.versionsOn(engine)),
  replicasOf: engines.map((engine) => seen(view.replicasOf(engine))),
  provenOn: adapterKeys.flatMap((key) => {
    const [tenant = "", adapter = ""] = key.split(".");
    return [1, 2, 3].map((version) => seen(view.provenOn(versionOf(tenant, adapter, version).engineName)));
  }),
});
/** Everything but the order among replicas of two engines that bear the same name. */
const routesOf = (view: RoutingView) =>
  models.map((model) => {
    const decision = decideRoute(view, { tenant: "acme", model });
    if (decision.kind !== "route") return { kind: decision.kind };
    return {
      model: decision.model,
      replicas: decision.replicas.map(({ state, fresh, inFlight }) => `${state.replica} ${fresh} ${inFlight}`),
    };
  });

it("finds by its index what a scan finds (property)", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 60 }), async (steps) => {
      const { table: making, write, now, pass } = tableUnderTest();
      const table = await making;
      const model = createModel(now);
      const leaving: (() => void)[] = [];
      const bestOf = (name: string): ReplicaView | undefined => {
        const decision = decideRoute(table.view(), { tenant: "acme", model: name });
        return decision.kind === "route" ? decision.replicas[0] : undefined;
      };
      for (const done of steps) {
        if (done.kind === "engine") {
          const { engine, tenants } = done;
          const record = done.there
            ? engineRecord({ engine, tenants, base: { name: "base", revision: "1", digest: `sha256:${"b".repeat(64)}` } })
            : undefined;
          write(buckets.engines, engine, record);
          if (record === undefined) model.records.delete(engine);
          else model.records.set(engine, record);
        } else if (done.kind === "adapter") {
          const state = done.versions === null ? undefined : stateOf(done.key, done.versions, done.engine);
          write(buckets.adapters, done.key, state);
          if (state === undefined) model.adapters.delete(done.key);
          else model.adapters.set(done.key, state);
        } else if (done.kind === "report") {
          const key = `${done.engine}.${done.replica}`;
          const { adapters: _none, ...report } = replicaOf(done.replica, "http://127.0.0.1:1", [], {
            engine: done.engine,
            base: "base",
            incarnation: done.incarnation,
            agent: null,
            ready: done.ready,
          });
          write(buckets.replicas, key, done.there ? report : undefined);
          if (done.there) model.reports.set(key, { report, heardAt: now() });
          else {
            // A replica that went answers nothing any more.
            model.reports.delete(key);
            model.unreachableAt.delete(key);
            model.inFlight.delete(key);
          }
        } else if (done.kind === "holding") {
          const replica = `${done.engine}.${done.replica}`;
          const key = `${replica}.${done.key}`;
          const state = stateOf(done.key, done.versions ?? [], done.engine);
          const holding: ReplicaHolding = {
            incarnation: done.incarnation,
            agent: null,
            adapters: state.versions.map((version) => heldBy(state, version, { state: done.proven ? "proven" : "loading" })),
          };
          write(buckets.holdings, key, done.versions === null ? undefined : holding);
          if (done.versions === null) model.holdings.delete(key);
          else model.holdings.set(key, { replica, holding });
        } else if (done.kind === "begin") {
          const best = bestOf(done.model);
          if (best === undefined) continue;
          const key = `${best.state.engine}.${best.state.replica}`;
          leaving.push(table.begin(best));
          model.inFlight.set(key, (model.inFlight.get(key) ?? 0) + 1);
        } else if (done.kind === "unreachable") {
          const best = bestOf(done.model);
          if (best === undefined) continue;
          table.unreachable(best);
          model.unreachableAt.set(`${best.state.engine}.${best.state.replica}`, now());
        } else if (done.kind === "time") pass(done.ms);
      }
      const [found, scanned] = [everythingOf(table.view()), everythingOf(model.view())];
      // Requests to a replica that went are not over yet, and only the table knows of them.
      const isWhole = leaving.length === [...model.inFlight.values()].reduce((sum, count) => sum + count, 0);
      const compared = ({ replicasOf, provenOn, ...rest }: typeof found) => ({
        ...rest,
        replicasOf: replicasOf.map(({ replicas, load }) => ({ replicas, load: isWhole ? load : null })),
        provenOn: provenOn.map(({ replicas, load }) => ({ replicas, load: isWhole ? load : null })),
      });
      expect(compared(found)).toEqual(compared(scanned));
      expect(routesOf(table.view())).toEqual(routesOf(model.view()));
      for (const leave of leaving) {
        leave();
        leave();
      }
      expect(engines.map((engine) => table.view().replicasOf(engine).load.requests)).toEqual([0, 0]);
    }),
    { numRuns: 300 },
  );
});

it("among many replicas a name keeps to its favourite while idle, and under load none is far above the average", async () => {
  const { table: making, write } = tableUnderTest();
  const table = await making;
  const many = 200;
  const state = stateOf("acme.pirate", [1], "local");
  write(buckets.engines, "local", engineRecord());
  write(buckets.adapters, "acme.pirate", state);
  const keys = Array.from({ length: many }, (_, n) => `r${n}`);
  const held = state.versions.map((version) => heldBy(state, version));
  for (const name of keys) {
    const { adapters: _none, ...report } = replicaOf(name, "http://127.0.0.1:1", [], { agent: null });
    write(buckets.replicas, `local.${name}`, report);
    write(buckets.holdings, `local.${name}.acme.pirate`, { incarnation: "1", agent: null, adapters: held });
  }
  const ask = (): readonly ReplicaView[] => {
    const decision = decideRoute(table.view(), { tenant: "acme", model: "acme/pirate" });
    if (decision.kind !== "route") throw new Error(decision.kind);
    return decision.replicas;
  };
  const loraName = state.versions[0]?.engineName ?? "";
  const favourite = table
    .view()
    .provenOn(loraName)
    .replicas.reduce((best, each) => (preferenceOf(loraName, each) > preferenceOf(loraName, best) ? each : best));
  for (let n = 0; n < 50; n++) expect(ask()[0]?.state.replica).toBe(favourite.state.replica);

  const requests = 4000;
  for (let n = 0; n < requests; n++) table.begin(ask()[0] as ReplicaView);
  const loads = table
    .view()
    .replicasOf("local")
    .replicas.map(({ inFlight }) => inFlight);
  expect(loads.reduce((sum, load) => sum + load, 0)).toBe(requests);
  expect(Math.max(...loads)).toBeLessThanOrEqual(Math.ceil((1.25 * requests) / many) + 1);

  // Those that are ready are found, however few they are.
  for (const name of keys.slice(1)) {
    const { adapters: _none, ...report } = replicaOf(name, "http://127.0.0.1:1", [], { agent: null, ready: false });
    write(buckets.replicas, `local.${name}`, report);
  }
  expect(ask().map(({ state: { replica } }) => replica)).toEqual(["r0"]);
});
