/** Engines with advice from observed traffic, and the placement of an adapter, as an operator reads and sets them. */
import { buckets, engineList, trafficKeys, type TrafficState } from "@loraline/contracts";
import { test } from "@loraline/testkit";
import { describe, expect } from "vitest";
import { adapterOf, heldBy, putAdapter, putReplica, registerEngine, replicaOf, startGateway, versionOf } from "../gateway-under-test.ts";

const traffic = (gateway: string, engine: string, names: readonly string[]): TrafficState => ({
  gateway,
  at: new Date().toISOString(),
  windowMs: 60_000,
  engines: [],
  asked: { [engine]: [...names] },
});

describe("GET /v1/loraline/engines", () => {
  test("tells what is asked of an engine and what it would take, other tenants' adapters only as numbers", async ({ nc, tenant }) => {
    await using line = await startGateway({ nc, tenant, projector: false });
    const engine = `engine-${tenant}`;
    const record = { engine, base: { name: `base-${tenant}`, revision: "1", digest: `sha256:${"b".repeat(64)}` as const } };
    await registerEngine(line.bus, { ...record, maxLoras: 2, maxCpuLoras: 4, toolCallParser: "hermes", tenants: [tenant, "neighbour"] });
    const adapters = ["one", "two", "three"].map((name, n) => {
      const of = n === 2 ? "neighbour" : tenant;
      return adapterOf(of, name, [versionOf(of, name, 1)], { engine, base: record.base.name });
    });
    for (const adapter of adapters) await putAdapter(line.bus, adapter);
    const held = adapters.map((adapter) => heldBy(adapter, adapter.versions[0]!));
    const counts = { wanted: 3, proven: 3, retrying: 0, quarantined: 0, refused: 0, draining: 0 };
    await putReplica(line.bus, replicaOf("r1", "http://127.0.0.1:1", held, { engine, base: record.base.name, counts }));
    const bucket = await line.bus.bucket(buckets.traffic);
    const names = adapters.map(({ versions }) => versions[0]!.engineName);
    await bucket.put(trafficKeys(`gw-${tenant}-1`).asked, traffic("gw1", engine, names.slice(0, 2)));
    await bucket.put(trafficKeys(`gw-${tenant}-2`).asked, traffic("gw2", engine, [...names.slice(1), record.base.name]));

    const mine = async () =>
      engineList.parse(await (await line.fetch("/v1/loraline/engines")).json()).data.find((each) => each.engine === engine);
    await expect.poll(async () => (await mine())?.asked.adapters).toBe(3);
    const view = await mine();
    expect(view).toMatchObject({
      toolCallParser: "hermes",
      versions: 3,
      maxLoras: 2,
      replicas: [{ replica: "r1", ready: true, counts: { proven: 3 } }],
    });
    expect(view?.advice[0]).toMatchObject({
      code: "WORKING_SET_TOO_BIG",
      message: expect.stringMatching(/^3 adapters .* max_loras is 2.*Raise max_loras to 3/),
    });
    expect(JSON.stringify(view)).not.toContain("three");
    const stranger = await line.fetch("/v1/loraline/engines", { headers: { authorization: `Bearer ${await line.keyFor(`x-${tenant}`)}` } });
    expect(engineList.parse(await stranger.json()).data.map((each) => each.engine)).not.toContain(engine);
  });
});

describe("POST /v1/loraline/adapters/:adapter/place", () => {
  test("answers when the placement is set, and refuses what is none", async ({ nc, tenant }) => {
    await using line = await startGateway({ nc, tenant, projector: false });
    const adapter = adapterOf(tenant, "pirate", [versionOf(tenant, "pirate", 1)]);
    await putAdapter(line.bus, adapter);
    const place = (body: unknown) =>
      line.fetch("/v1/loraline/adapters/pirate/place", {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(body),
      });
    for (const wrong of [
      {},
      { mode: "spread" },
      { mode: "spread", replicas: 0 },
      { mode: "pinned", pins: [] },
      { mode: "all", replicas: 2 },
    ]) {
      expect((await place(wrong)).status).toBe(400);
    }
    const asked = place({ mode: "spread", replicas: 2 });
    // As the serve controller does when it has read the command.
    await putAdapter(line.bus, { ...adapter, placement: { mode: "spread", replicas: 2 } });
    const answer = await asked;
    expect([answer.status, await answer.json()]).toMatchObject([200, { adapter: { placement: { mode: "spread", replicas: 2 } } }]);
  });
});
