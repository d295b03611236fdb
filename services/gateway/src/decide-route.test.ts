import { describe, expect, it } from "vitest";
import { decideRoute, parseModel, type ReplicaView, type RoutingView } from "./decide-route.ts";
import { adapterOf, base, engineRecord, heldBy, replicaOf, versionOf } from "./gateway-under-test.ts";
import { modelsOf } from "./models.ts";

const v1 = versionOf("acme", "pirate", 1);
const v2 = versionOf("acme", "pirate", 2);
const adapter = adapterOf("acme", "pirate", [v1, v2]);

const replica = (name: string, versions = [v1, v2], over: Partial<ReplicaView> = {}): ReplicaView => ({
  state: replicaOf(
    name,
    `http://${name}`,
    versions.map((version) => heldBy(adapter, version)),
  ),
  proven: new Set(versions.map(({ engineName }) => engineName)),
  fresh: true,
  inFlight: 0,
  ...over,
});
const view = (replicas: ReplicaView[], over: Partial<RoutingView> = {}): RoutingView => ({
  engines: [engineRecord()],
  adapters: new Map([["acme.pirate", adapter]]),
  replicas,
  ...over,
});
const route = (replicas: ReplicaView[], model: string, over: Partial<RoutingView> = {}, tenant = "acme") => {
  const decision = decideRoute(view(replicas, over), { tenant, model });
  return decision.kind === "route" ? { ...decision, replicas: decision.replicas.map(({ state }) => state.replica) } : decision;
};

describe("decideRoute", () => {
  it.each([
    ["acme/pirate", "acme/pirate@2", v2.engineName],
    ["acme/pirate@1", "acme/pirate@1", v1.engineName],
    [`ft:${base}:acme:pirate:1`, "acme/pirate@1", v1.engineName],
    [base, base, base],
  ])("routes %s to %s", (model, pinned, engineModel) => {
    expect(route([replica("a")], model)).toMatchObject({ kind: "route", model: pinned, engineModel, replicas: ["a"] });
  });

  it.each([
    "pirate",
    "acme/parrot",
    "acme/pirate@3",
    "acme/pirate@0",
    "acme/pirate@x",
    "",
    "a/b/c",
    `ft:other:acme:pirate:1`,
    v1.engineName,
  ])("does not know %j", (model) => {
    expect(route([replica("a")], model)).toMatchObject({ kind: "unknown" });
  });

  it("does not know other tenants' adapters, however they are named", () => {
    for (const model of ["acme/pirate", "acme/pirate@1", `ft:${base}:acme:pirate:1`]) {
      expect(route([replica("a")], model, {}, "other")).toEqual({ kind: "unknown", reason: null });
    }
  });

  it("does not know bases of engines that are other tenants'", () => {
    expect(route([replica("a")], base, { engines: [engineRecord({ tenants: ["other"] })] })).toMatchObject({ kind: "unknown" });
    expect(route([replica("a")], base, { engines: [engineRecord({ tenants: ["acme"] })] })).toMatchObject({ kind: "route" });
  });

  it("chooses only replicas that are ready and have the very version proven", () => {
    const notReady = replica("b");
    notReady.state = { ...notReady.state, ready: false };
    expect(route([replica("a", [v1]), notReady, replica("c")], "acme/pirate")).toMatchObject({ replicas: ["c"] });
  });

  it("chooses the least busy, and a silent one last", () => {
    const replicas = [
      replica("a", undefined, { inFlight: 2 }),
      replica("b", undefined, { fresh: false }),
      replica("c", undefined, { inFlight: 1 }),
    ];
    expect(route(replicas, "acme/pirate")).toMatchObject({ replicas: ["c", "a", "b"] });
    expect(route([replica("b", undefined, { fresh: false })], "acme/pirate")).toMatchObject({ replicas: ["b"] });
  });

  it("keeps to one replica for one version when all are idle, and spreads versions over them", () => {
    const names = Array.from({ length: 8 }, (_, n) => `replica-${n}`);
    const many = Array.from({ length: 400 }, (_, n) => versionOf("acme", "pirate", n + 1));
    const adapters = new Map([["acme.pirate", adapterOf("acme", "pirate", many)]]);
    const firstOf = (replicas: ReplicaView[], version: number): string => {
      const decision = decideRoute(view(replicas, { adapters }), { tenant: "acme", model: `acme/pirate@${version}` });
      return decision.kind === "route" ? decision.replicas[0].state.replica : "";
    };
    const all = names.map((name) => replica(name, many));
    const chosen = many.map(({ version }) => firstOf(all, version));
    const counts = names.map((name) => chosen.filter((one) => one === name).length);
    expect(Math.min(...counts)).toBeGreaterThan(25); // 50 each, if it were perfect
    const without = all.slice(1);
    const moved = many.filter(({ version }, n) => chosen[n] !== names[0] && firstOf(without, version) !== chosen[n]);
    expect(moved).toEqual([]);
  });

  it("says why nothing answers", () => {
    expect(route([], base)).toMatchObject({ kind: "unavailable", reason: expect.stringContaining("No replica") });
    expect(route([], "acme/pirate")).toMatchObject({ kind: "unavailable", reason: expect.stringContaining("has no replica now") });
    const error = { code: "X", message: "digest differs" };
    const loading = replica("a", []);
    loading.state = { ...loading.state, adapters: [heldBy(adapter, v2, { state: "retrying", error })] };
    expect(route([loading, replica("b", [])], "acme/pirate")).toMatchObject({
      kind: "unavailable",
      reason: "acme/pirate@2 is proven nowhere now: replica a: retrying (digest differs); replica b has not begun to load it.",
    });
  });

  it("tells what is coming from what never will", () => {
    const only = (over: Parameters<typeof versionOf>[3], alias: number | null = null) => ({
      adapters: new Map([["acme.pirate", adapterOf("acme", "pirate", [versionOf("acme", "pirate", 1, over)], { alias })]]),
    });
    expect(route([replica("a")], "acme/pirate", only({ promote: "auto" }))).toMatchObject({ kind: "unavailable" });
    expect(route([replica("a")], "acme/pirate", only({ promote: "manual" }))).toMatchObject({
      kind: "unknown",
      reason: expect.stringContaining("Promote one"),
    });
    const reason = { code: "GATE", message: "worse than the base" };
    expect(route([replica("a")], "acme/pirate@1", only({ status: "refused", reason }))).toMatchObject({
      kind: "unknown",
      reason: "Version 1 of acme/pirate is refused: worse than the base",
    });
  });
});

describe("modelsOf", () => {
  it("lists bases, and the tenant's names that would be routed", () => {
    const replicas = [replica("a", [v1])];
    expect(modelsOf(view(replicas), "acme").map(({ id }) => id)).toEqual([base, "acme/pirate@1"]);
    expect(modelsOf(view([replica("a")]), "acme").map(({ id }) => id)).toEqual([base, "acme/pirate@1", "acme/pirate", "acme/pirate@2"]);
    expect(modelsOf(view([replica("a")]), "other").map(({ id }) => id)).toEqual([base]);
  });
});

describe("parseModel", () => {
  it("reads bases with colons and slashes in OpenAI's form", () => {
    expect(parseModel("ft:org/base:8b:acme:pirate:12")).toEqual({ base: "org/base:8b", tenant: "acme", adapter: "pirate", version: 12 });
  });
});
