import { canarySettings, type CanaryState, type ReplicaAdapter } from "@loraline/contracts";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { ReplicaView } from "./decide-replicas.ts";
import { decideRoute, parseModel, type RoutingView, stickyKeyOf } from "./decide-route.ts";
import { adapterOf, base, engineRecord, heldBy, replicaOf, versionOf } from "../gateway-under-test.ts";
import { modelsOf } from "./models.ts";
import { type Everything, viewByScan } from "./routing-under-test.ts";

const v1 = versionOf("acme", "pirate", 1);
const v2 = versionOf("acme", "pirate", 2);
const adapter = adapterOf("acme", "pirate", [v1, v2]);

const holding =
  (...held: ReplicaAdapter[]): ReplicaView["held"] =>
  (name) =>
    held.find(({ engineName }) => engineName === name);
const replica = (name: string, versions = [v1, v2], over: Partial<ReplicaView> = {}): ReplicaView => ({
  state: replicaOf(name, `http://${name}`),
  held: holding(...versions.map((version) => heldBy(adapter, version))),
  proven: new Set(versions.map(({ engineName }) => engineName)),
  fresh: true,
  inFlight: 0,
  ...over,
});
const view = (replicas: ReplicaView[], over: Partial<Everything> = {}): RoutingView =>
  viewByScan({ engines: [engineRecord()], adapters: new Map([["acme.pirate", adapter]]), replicas, ...over });
const route = (replicas: ReplicaView[], model: string, over: Partial<Everything> = {}, tenant = "acme") => {
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

  it("asks a base on every engine that serves it", () => {
    const engines = [engineRecord(), engineRecord({ engine: "other" }), engineRecord({ engine: "closed", tenants: ["globex"] })];
    const on = (engine: string, name: string) => replica(name, [], { state: replicaOf(name, `http://${name}`, [], { engine }) });
    expect(route([on("other", "b"), on("closed", "c")], base, { engines })).toMatchObject({ kind: "route", replicas: ["b"] });
    expect(route([on("closed", "c")], base, { engines })).toMatchObject({ kind: "unavailable" });
    const listed = modelsOf(view([on("local", "a"), on("other", "b"), on("closed", "c")], { engines }), "acme");
    expect(listed).toMatchObject([{ id: base, loraline: { readyReplicas: 2 } }]);
  });

  it("does not know other tenants' adapters, however they are named", () => {
    for (const model of ["acme/pirate", "acme/pirate@1", `ft:${base}:acme:pirate:1`]) {
      expect(route([replica("a")], model, {}, "other")).toEqual({ kind: "unknown", reason: null });
    }
  });

  describe("versions that do not stay loaded by themselves", () => {
    const at = "2026-01-01T00:00:00.000Z";
    const wanted = { at, until: "2026-01-01T00:15:00.000Z" };
    const withOne = (over: Partial<typeof v1>) => {
      const state = adapterOf("acme", "pirate", [{ ...v1, servedAt: at, ...over }, v2]);
      return { adapters: new Map([["acme.pirate", state]]) };
    };
    it.each(["acme/pirate@1", `ft:${base}:acme:pirate:1`])("%s: a retired one is asked for, and not there yet", (model) => {
      expect(route([replica("a", [v2])], model, withOne({ status: "retired" }))).toEqual({
        kind: "unavailable",
        code: "version_loading",
        asleep: [],
        reason: expect.stringContaining("being loaded again") as string,
        retryAfterMs: 2000,
        counted: { model: "acme/pirate@1", base, adapter: "pirate", version: 1 },
        named: { adapter: "pirate", version: 1, wanted: null },
      });
    });
    it("one that is being loaded again says so until it is proven, and then answers", () => {
      const loading = withOne({ wanted, replicas: [] });
      expect(route([replica("a", [v2])], "acme/pirate@1", loading)).toMatchObject({ kind: "unavailable", code: "version_loading" });
      expect(route([replica("a")], "acme/pirate@1", loading)).toMatchObject({ kind: "route", named: { version: 1, wanted } });
      // For others than these it is the replicas' trouble.
      expect(route([replica("a", [v2])], "acme/pirate@1", withOne({}))).toMatchObject({ code: "model_not_ready" });
    });
    it("whoever asks for the alias, or for its version, asks for nothing that would not be loaded", () => {
      for (const model of ["acme/pirate", "acme/pirate@2"]) expect(route([replica("a")], model)).not.toHaveProperty("named");
    });
    it("a deleted one is unknown, with the reason", () => {
      const reason = { code: "VERSION_DELETED", message: "it was deleted on 2026-01-01 by ann." };
      expect(route([replica("a")], "acme/pirate@1", withOne({ status: "deleted", reason }))).toEqual({
        kind: "unknown",
        reason: "Version 1 of acme/pirate is deleted: it was deleted on 2026-01-01 by ann.",
      });
    });
  });

  it("does not know bases of engines that are other tenants'", () => {
    expect(route([replica("a")], base, { engines: [engineRecord({ tenants: ["other"] })] })).toMatchObject({ kind: "unknown" });
    expect(route([replica("a")], base, { engines: [engineRecord({ tenants: ["acme"] })] })).toMatchObject({ kind: "route" });
  });

  it("chooses only replicas that are ready and have the very version proven", () => {
    const notReady = replica("b", undefined, { state: replicaOf("b", "http://b", [], { ready: false }) });
    expect(route([replica("a", [v1]), notReady, replica("c")], "acme/pirate")).toMatchObject({ replicas: ["c"] });
  });

  it("keeps to the favourite while its load is bearable, then takes the next, and a silent one last", () => {
    const names = ["a", "b", "c", "d"];
    const order = (loads: Record<string, number>, over: Record<string, Partial<ReplicaView>> = {}): string[] => {
      const decision = route(
        names.map((name) => replica(name, undefined, { inFlight: loads[name] ?? 0, ...over[name] })),
        "acme/pirate",
      );
      return decision.kind === "route" ? decision.replicas : [];
    };
    const [first = "", second = "", third = "", last = ""] = order({});
    expect(order({ [first]: 1, [second]: 1, [third]: 1, [last]: 1 })).toEqual([first, second, third, last]);
    // 5 requests on 4 replicas: 1.25 times the average, rounded up, is 2.
    expect(order({ [first]: 2, [second]: 1, [third]: 1 })).toEqual([second, third, last, first]);
    expect(order({ [first]: 9, [second]: 9, [third]: 9 })[0]).toBe(last);
    expect(order({}, { [first]: { fresh: false } })).toEqual([second, third, last, first]);
    expect(route([replica("b", undefined, { fresh: false })], "acme/pirate")).toMatchObject({ replicas: ["b"] });
  });

  it("loads no replica above 1.25 times the average and one, and four more where adapters outnumber slots (property)", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 12 }),
        fc.integer({ min: 1, max: 200 }),
        fc.integer({ min: 1, max: 20 }),
        (n, requests, versions) => {
          const many = Array.from({ length: versions }, (_, i) => versionOf("acme", "pirate", i + 1));
          const adapters = new Map([["acme.pirate", adapterOf("acme", "pirate", many)]]);
          const replicas = Array.from({ length: n }, (_, i) => replica(`r${i}`, many));
          for (let i = 0; i < requests; i++) {
            const decision = decideRoute(view(replicas, { adapters }), { tenant: "acme", model: `acme/pirate@${(i % versions) + 1}` });
            if (decision.kind !== "route") throw new Error("no route");
            decision.replicas[0].inFlight += 1;
          }
          const slack = versions > engineRecord().maxLoras ? 4 : 0;
          for (const { inFlight } of replicas) expect(inFlight).toBeLessThanOrEqual(Math.ceil((1.25 * requests) / n) + slack);
        },
      ),
      { numRuns: 30 },
    );
  });

  it("chooses at random when a benchmark asks for it", () => {
    const replicas = [replica("a", undefined, { inFlight: 9 }), replica("b")];
    const numbers = [0.9, 0.1, 0.1, 0.9];
    const random = () => numbers.shift() ?? 0;
    expect(route(replicas, "acme/pirate", { random })).toMatchObject({ replicas: ["a", "b"] });
    expect(route(replicas, "acme/pirate", { random })).toMatchObject({ replicas: ["b", "a"] });
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
    const loading = replica("a", [], { held: holding(heldBy(adapter, v2, { state: "retrying", error })) });
    expect(route([loading, replica("b", [])], "acme/pirate")).toMatchObject({
      kind: "unavailable",
      reason: "acme/pirate@2 is proven nowhere now: replica a: retrying (digest differs); replica b has not begun to load it.",
    });
    const placed = (over: Parameters<typeof versionOf>[3]) => ({
      adapters: new Map([["acme.pirate", adapterOf("acme", "pirate", [versionOf("acme", "pirate", 1, over)])]]),
    });
    expect(route([loading, replica("b", [])], "acme/pirate", placed({ replicas: ["b"] }))).toMatchObject({
      reason: "acme/pirate@1 is proven nowhere now: replica b has not begun to load it.",
    });
    const unplaced = { code: "NO_ROOM", message: "it fits on no replica." };
    expect(route([replica("b", [])], "acme/pirate", placed({ replicas: [], unplaced }))).toMatchObject({
      kind: "unavailable",
      reason: "acme/pirate@1 is not loaded: it fits on no replica.",
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

describe("a canary", () => {
  const canary = (share: number, over: Partial<CanaryState> = {}): CanaryState => ({
    version: 2,
    from: 1,
    step: 0,
    share,
    since: "2026-01-01T00:00:00.000Z",
    startedAt: "2026-01-01T00:00:00.000Z",
    by: null,
    settings: canarySettings.parse({}),
    baseline: {},
    ...over,
  });
  const versionFor = (
    sticky: string | undefined,
    state: CanaryState | null,
    { replicas = [replica("a")], alias = 1, model = "acme/pirate", versions = [v1, v2] } = {},
  ): string | undefined => {
    const adapters = new Map([["acme.pirate", adapterOf("acme", "pirate", versions, { alias, canary: state })]]);
    const decision = decideRoute(view(replicas, { adapters }), {
      tenant: "acme",
      model,
      sticky: sticky === undefined ? undefined : () => sticky,
    });
    return decision.kind === "route" ? decision.model : undefined;
  };
  const users = Array.from({ length: 4000 }, (_, i) => `user-${i}`);

  it.each([0.5, 5, 25, 50, 90])("gets %d percent of the users, the others stay", (share) => {
    const moved = users.filter((user) => versionFor(user, canary(share)) === "acme/pirate@2");
    // Three standard deviations.
    expect(Math.abs(moved.length / users.length - share / 100)).toBeLessThan(
      3 * Math.sqrt(((share / 100) * (1 - share / 100)) / users.length),
    );
    expect(users.every((user) => /@[12]$/.test(versionFor(user, canary(share)) ?? ""))).toBe(true);
  });

  it("shows one user one version, and a growing share never moves a user back (property)", () => {
    const share = fc.double({ min: 0, max: 100, noNaN: true });
    fc.assert(
      fc.property(fc.string(), share, share, (user, a, b) => {
        const [less, more] = a < b ? [a, b] : [b, a];
        const before = versionFor(user, canary(less));
        expect(versionFor(user, canary(less), { replicas: [replica("x"), replica("a")] })).toBe(before);
        expect(before === "acme/pirate@1" || versionFor(user, canary(more)) === "acme/pirate@2").toBe(true);
      }),
    );
  });

  it("takes other users first for another version", () => {
    const first = users.filter((user) => versionFor(user, canary(10)) === "acme/pirate@2");
    const v3 = versionOf("acme", "pirate", 3);
    const replicas = [replica("a", [v1, v2, v3])];
    const again = first.filter(
      (user) => versionFor(user, canary(10, { version: 3 }), { replicas, versions: [v1, v2, v3] }) === "acme/pirate@3",
    );
    expect(again.length / first.length).toBeLessThan(0.2);
  });

  it("leaves pinned versions, and whoever has no sticky key, alone", () => {
    const user = users.find((candidate) => versionFor(candidate, canary(50)) === "acme/pirate@2") ?? "";
    expect(versionFor(user, canary(50), { model: "acme/pirate@1" })).toBe("acme/pirate@1");
    expect(versionFor(undefined, canary(99.9))).toBe("acme/pirate@1");
    expect(versionFor(user, null)).toBe("acme/pirate@1");
  });

  it("that is proven nowhere, refused, or of another alias, takes nobody", () => {
    const user = users.find((candidate) => versionFor(candidate, canary(50)) === "acme/pirate@2") ?? "";
    expect(versionFor(user, canary(50), { replicas: [replica("a", [v1])] })).toBe("acme/pirate@1");
    expect(versionFor(user, canary(50), { versions: [v1, { ...v2, status: "refused" }] })).toBe("acme/pirate@1");
    expect(versionFor(user, canary(50, { version: 1, from: 1 }), { alias: 2 })).toBe("acme/pirate@2");
  });

  it("whose replicas fell silent takes nobody while the promoted version's did not; when all are, the silence is the bus's", () => {
    const user = users.find((candidate) => versionFor(candidate, canary(50)) === "acme/pirate@2") ?? "";
    const dead = replica("dead", [v1, v2], { fresh: false });
    expect(versionFor(user, canary(50), { replicas: [dead, replica("a", [v1])] })).toBe("acme/pirate@1");
    expect(versionFor(user, canary(50), { replicas: [dead, replica("a", [v1, v2])] })).toBe("acme/pirate@2");
    expect(versionFor(user, canary(50), { replicas: [dead] })).toBe("acme/pirate@2");
  });
});

describe("stickyKeyOf", () => {
  const chat = (...contents: string[]) => ({
    messages: [{ role: "system", content: "s" }, ...contents.map((content, i) => ({ role: i % 2 === 0 ? "user" : "assistant", content }))],
  });
  it("is the header, else the user, else the conversation's beginning with the key", () => {
    expect(stickyKeyOf({ header: "h", by: "k", body: { user: "u" } })).toBe("h");
    expect(stickyKeyOf({ by: "k", body: { user: "u", safety_identifier: "s" } })).toBe("u");
    expect(stickyKeyOf({ by: "k", body: { user: "", safety_identifier: "s" } })).toBe("s");
    const one = stickyKeyOf({ by: "k", body: chat("hello") });
    expect(stickyKeyOf({ by: "k", body: chat("hello", "arr", "again?") })).toBe(one);
    expect(stickyKeyOf({ by: "k", body: chat("bye") })).not.toBe(one);
    expect(stickyKeyOf({ by: "other", body: chat("hello") })).not.toBe(one);
    expect(stickyKeyOf({ by: "k", body: { prompt: [1, 2] } })).not.toBe(stickyKeyOf({ by: "k", body: { prompt: [1, 3] } }));
    for (const body of [{}, { messages: [] }, { messages: [null] }, { messages: "x" }])
      expect(stickyKeyOf({ by: "k", body })).toContain("k");
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
