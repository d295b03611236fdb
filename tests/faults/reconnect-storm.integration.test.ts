/**
 * A hundred agents, each with a connection of its own, lose NATS at the same moment and come back at the same moment. What their engines
 * hold stays loaded and proven, nothing is loaded twice, and what comes afterwards reaches all of them.
 */
import { join } from "node:path";
import { connectBus, createBus, ensureStreams } from "@loraline/bus";
import { runServed } from "@loraline/contracts";
import { createSimulatedEngine, simulatedAdapter, type SimulatedEngine, simulatedProbes, spawnNatsServer } from "@loraline/testkit";
import { expect, it } from "vitest";
import { serveUnderTest } from "../../services/serve/src/serve-under-test.ts";
import { eventually, scratchDir } from "../line-under-test.ts";

const agents = 100;
const base = { name: "tiny", revision: "1", digest: `sha256:${"b".repeat(64)}` } as const;
const tenant = "acme";

it("a hundred agents lose NATS and come back at once", { timeout: 600_000 }, async () => {
  await using owned = new AsyncDisposableStack();
  const { path: dir } = owned.use(await scratchDir());
  const nats = owned.use(await spawnNatsServer());
  const connection = async (name: string) => {
    const nc = await connectBus({ servers: nats.url, name });
    owned.defer(() => nc.close());
    return nc;
  };
  const nc = await connection("controller");
  await ensureStreams(nc);
  const serve = owned.use(await serveUnderTest({ nc, tenant, dir, base }));
  // A busy machine sends heartbeats late, and nobody is to be taken for gone by that.
  owned.use(await serve.startController(undefined, { replicaAwayMs: 60_000 }));
  const engines: SimulatedEngine[] = [];
  for (let n = 0; n < agents; n++) {
    const engine = owned.use(await createSimulatedEngine({ base: base.name }));
    engines.push(engine);
    const bus = createBus({ nc: await connection(`agent ${n}`), log: serve.log, telemetry: serve.telemetry, source: "agent" });
    owned.use(await serve.startAgent(engine.url, { bus, replica: `r${n}`, healthMs: 2000, heartbeatMs: 5000 }));
  }
  const train = async (adapter: string, seed: number): Promise<void> => {
    const probes = await simulatedProbes(join(dir, `scratch-${seed}`), { base: base.name, seed });
    const runId = await serve.train(adapter, { ...simulatedAdapter({ base: base.name, seed }), probes });
    await eventually(`${adapter} is served by all`, 240_000, async () =>
      (await serve.history([runServed], runId)).length > 0 ? true : undefined,
    );
    await eventually(`${adapter} is loaded on all`, 240_000, () =>
      engines.every(({ loaded }) => [...loaded.keys()].some((name) => name.includes(`.${adapter}.`))) ? true : undefined,
    );
  };
  const callsOf = () => engines.map(({ calls }) => [...calls].toSorted());
  for (const [n, adapter] of ["anna", "boris", "carla"].entries()) await train(adapter, n + 1);
  const before = callsOf();
  expect(before.every((calls) => calls.length === 3)).toBe(true);

  await nats.kill();
  await new Promise((resolve) => setTimeout(resolve, 2000));
  await nats.start();
  await train("dora", 4);
  const after = callsOf();
  expect(after.filter((calls) => calls.length !== 4)).toEqual([]);
  expect(after.every((calls, n) => before[n]?.every((call) => calls.includes(call)))).toBe(true);
  for (const adapter of ["anna", "boris", "carla", "dora"]) {
    const state = await serve.adapter(adapter);
    expect(state?.versions.map(({ status, version }) => [version, status])).toEqual([[1, "desired"]]);
    expect(state?.alias).toBe(1);
  }
  for (let n = 0; n < agents; n++) {
    const held = (await serve.replica(`r${n}`))?.adapters ?? [];
    expect(
      held.map(({ state }) => state),
      `r${n}`,
    ).toEqual(["proven", "proven", "proven", "proven"]);
  }
});
