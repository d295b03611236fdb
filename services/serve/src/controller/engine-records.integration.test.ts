/** Serve as a process, with an engine whose base is missing on the volume: it serves the others, and says what is missing. */
import { spawn } from "node:child_process";
import { mkdir, mkdtemp, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createBus, ensureStreams } from "@loraline/bus";
import { buckets, type EngineRecord, type RunSpec, runSpec, runWaiting, unreadDigest } from "@loraline/contracts";
import { judgeRunSpec } from "@loraline/models";
import { createLog, createTelemetry } from "@loraline/runtime";
import { createSimulatedEngine, simulatedAdapter, simulatedProbes, spawnNatsServer, test as it } from "@loraline/testkit";
import { ulid } from "ulid";
import { expect } from "vitest";
import { watchBases, withWhatWasKnown } from "./engine-records.ts";
import { serveUnderTest } from "../serve-under-test.ts";

const within = { timeout: 30_000, interval: 50 };
const log = createLog({ service: "test", level: "silent" });
const telemetry = createTelemetry({ service: "test" });
const engineOf = (name: string, over: Partial<EngineRecord> = {}): EngineRecord => ({
  engine: name,
  base: { name, revision: "1", digest: `sha256:${"b".repeat(64)}` },
  maxLoraRank: 32,
  maxLoras: 4,
  maxCpuLoras: 16,
  maxModelLen: 2048,
  updatedAt: new Date(0).toISOString(),
  ...over,
});
const missing = (name: string): Partial<EngineRecord> => ({
  base: { name, revision: "unknown", digest: unreadDigest },
  problem: { code: "BASE_MISSING", message: `engine "${name}": base "${name}" is not here`, param: "base" },
});
const specFor = (base: string): RunSpec => runSpec.parse({ base, adapter: "pirate", dataset: ulid() });

const test = it.extend("dir", async ({}, { onCleanup }) => {
  const dir = await mkdtemp(join(tmpdir(), "loraline-serve-"));
  onCleanup(() => rm(dir, { recursive: true, force: true }));
  return dir;
});

/** The process, as the chart starts it. */
async function startServe(dir: string, natsUrl: string, engines: readonly EngineRecord[]) {
  const file = join(dir, "engines.json");
  await writeFile(file, JSON.stringify(engines));
  const said: string[] = [];
  const child = spawn(process.execPath, ["--conditions=@loraline/source", join(import.meta.dirname, "../main.ts")], {
    env: { PATH: process.env["PATH"], NATS_URL: natsUrl, SERVE_ENGINES_FILE: file, SERVE_BASES_DIR: join(dir, "bases") },
    stdio: ["ignore", "pipe", "pipe"],
  });
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (text: Buffer) => void said.push(text.toString()));
  const exited = new Promise<void>((resolve) => child.once("exit", () => resolve()));
  return {
    said: () => said.join(""),
    async [Symbol.asyncDispose]() {
      child.kill("SIGTERM");
      await exited;
    },
  };
}

test("one missing base keeps no other from being served, and what was known of it stays known", { timeout: 90_000 }, async ({ dir }) => {
  await mkdir(join(dir, "bases"));
  await using nats = await spawnNatsServer();
  const nc = await nats.connect();
  await ensureStreams(nc);
  const bus = createBus({ nc, log, telemetry, source: "test" });
  const engines = await bus.bucket(buckets.engines);
  const known = engineOf("known", { templateDigest: `sha256:${"7".repeat(64)}` });
  await engines.put("known", known);
  const given = [engineOf("good"), engineOf("known", { ...missing("known"), maxLoras: 8 }), engineOf("never", missing("never"))];

  await using serve = await startServe(dir, nats.url, given);
  await expect.poll(serve.said, within).toMatch(/"ready"/);
  const records = async () => (await engines.entries()).map(({ value }) => value);
  expect((await records()).map(({ engine }) => engine).sort()).toEqual(["good", "known", "never"]);
  expect(judgeRunSpec(specFor("good"), await records())).toEqual([]);
  for (const name of ["known", "never"]) {
    expect(judgeRunSpec(specFor(name), await records())).toMatchObject([
      { code: "BASE_UNAVAILABLE", message: expect.stringContaining(`base "${name}" is not here`) },
    ]);
    expect(serve.said()).toContain(`nothing new is made for this engine: engine \\"${name}\\": base \\"${name}\\" is not here`);
  }
  // Its replicas were started with that, and run on.
  expect((await engines.get("known"))?.value).toMatchObject({ base: known.base, templateDigest: known.templateDigest, maxLoras: 8 });
  await nc.close();
});

test(
  "a base that comes back as it was is taken up again; of another one it is said that serve must read it",
  { timeout: 60_000 },
  async ({ dir, nc }) => {
    await ensureStreams(nc);
    const bus = createBus({ nc, log, telemetry, source: "test" });
    const engines = await bus.bucket(buckets.engines);
    const basesDir = join(dir, "bases");
    const digest = `sha256:${"b".repeat(64)}` as const;
    const [back, other] = [`back-${ulid()}`, `other-${ulid()}`];
    const described = [back, other].map((name) => engineOf(name, missing(name)));
    const records = [withWhatWasKnown(described[0] as EngineRecord, engineOf(back)), described[1] as EngineRecord];
    for (const record of records) await engines.put(record.engine, record);
    const problemOf = async (name: string) => (await engines.get(name))?.value.problem;

    await using _watching = watchBases({ engines, records, basesDir, log, everyMs: 50 });
    for (const name of [back, other]) {
      await mkdir(join(dir, "ready", name), { recursive: true });
      await writeFile(join(dir, "ready", name, "config.json"), "{}");
      await writeFile(join(dir, "ready", name, "base.json"), JSON.stringify({ name, revision: "1", digest }));
    }
    expect(await problemOf(back)).toMatchObject({ code: "BASE_MISSING" });
    await rename(join(dir, "ready"), basesDir);
    await expect.poll(() => problemOf(back), within).toBeNull();
    await expect
      .poll(() => problemOf(other), within)
      .toMatchObject({ code: "BASE_NOT_READ", message: expect.stringMatching(/Restart serve/) });
    await engines.delete(back);
    await engines.delete(other);
  },
);

test(
  "a version whose engine has lost its base and all replicas says why it is not served",
  { timeout: 60_000 },
  async ({ nc, tenant, dir }) => {
    const base = { name: "tiny", revision: "1", digest: `sha256:${"b".repeat(64)}` } as const;
    await using serve = await serveUnderTest({ nc, tenant, dir, base });
    const engines = await serve.bus.bucket(buckets.engines);
    await using _controller = await serve.startController();
    const record = (await engines.get(serve.engine))?.value as EngineRecord;
    const problem = { code: "BASE_MISSING", message: "the base is not here", param: "base" };
    await engines.put(serve.engine, { ...record, problem });
    const probes = await simulatedProbes(join(dir, "scratch"), { base: base.name });
    const id = await serve.train("pirate", { ...simulatedAdapter({ base: base.name }), probes });
    const reason = async () => (await serve.bus.last(runWaiting, { tenant, id }))?.data.reason;
    await expect.poll(reason, within).toEqual({ code: problem.code, message: problem.message });
    await engines.put(serve.engine, record);
    const engine = await createSimulatedEngine({ base: base.name });
    await using _agent = await serve.startAgent(engine.url);
    await expect.poll(reason, within).toBeNull();
    await expect.poll(async () => (await serve.adapter("pirate"))?.alias, within).toBe(1);
    await engine[Symbol.asyncDispose]();
  },
);
