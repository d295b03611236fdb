/** Engines that come and go while serve runs, by the file that the operator's ConfigMap is mounted as. */
import { spawn } from "node:child_process";
import { mkdir, mkdtemp, rename, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createBus, ensureStreams } from "@loraline/bus";
import { assignmentsComplete, buckets, type EngineRecord, unreadDigest } from "@loraline/contracts";
import { createLog, createTelemetry } from "@loraline/runtime";
import { spawnNatsServer } from "@loraline/testkit";
import { smollm2Dir } from "@loraline/testkit/servers";
import { afterEach, beforeEach, expect, test } from "vitest";
import { followEngineResources } from "./engine-resources.ts";

const within = { timeout: 30_000, interval: 50 };
const log = createLog({ service: "test", level: "silent" });
const engine = { engine: "small", base: "smollm2-135m-instruct", maxLoras: 2, maxCpuLoras: 4, maxLoraRank: 16, maxModelLen: 1024, gpus: 0 };

let dir: string;
let bases: string;
let file: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "loraline-engine-resources-"));
  bases = join(dir, "bases");
  file = join(dir, "engines.json");
  await mkdir(bases);
});
afterEach(() => rm(dir, { recursive: true, force: true }));
/** As the kubelet does: a file changes whole. */
const say = async (engines: unknown): Promise<void> => {
  await writeFile(`${file}.new`, JSON.stringify(engines));
  await rename(`${file}.new`, file);
};

test("serve takes up an engine while it runs, and another one of it, and lets it go", { timeout: 90_000 }, async () => {
  await symlink(smollm2Dir, join(bases, engine.base));
  await writeFile(join(dir, "own.json"), "[]");
  await using nats = await spawnNatsServer();
  const nc = await nats.connect();
  await ensureStreams(nc);
  const bus = createBus({ nc, log, telemetry: createTelemetry({ service: "test" }), source: "test" });
  const [engines, assignments] = await Promise.all([bus.bucket(buckets.engines), bus.bucket(buckets.assignments)]);
  const record = async () => (await engines.get(engine.engine))?.value;
  const start = () => {
    const env = { NATS_URL: nats.url, SERVE_ENGINES_FILE: join(dir, "own.json"), SERVE_ENGINE_RESOURCES: file, SERVE_BASES_DIR: bases };
    const child = spawn(process.execPath, ["--conditions=@loraline/source", join(import.meta.dirname, "../main.ts")], {
      env: { PATH: process.env["PATH"], ...env },
      stdio: ["ignore", "pipe", "pipe"],
    });
    let said = "";
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (text: Buffer) => (said += text.toString()));
    const exited = new Promise<void>((resolve) => child.once("exit", () => resolve()));
    const end = async (): Promise<void> => {
      child.kill("SIGTERM");
      await exited;
    };
    return { said: () => said, [Symbol.asyncDispose]: end };
  };
  {
    await using serve = start();
    await expect.poll(serve.said, within).toMatch(/"ready"/);
    expect(await record()).toBeUndefined();
    await say([engine]);
    await expect.poll(record, within).toMatchObject({ maxLoras: 2, base: { name: engine.base } });
    expect(await record()).not.toHaveProperty("problem.code");
    const found = (await record()) as EngineRecord;
    expect(found.base.digest).not.toBe(unreadDigest);
    expect(found.modules?.length).toBeGreaterThan(3);
    // What its agents wait for before they are ready.
    await expect.poll(async () => (await assignments.get(assignmentsComplete(engine.engine)))?.value, within).toEqual({ versions: [] });
    await say([{ ...engine, maxLoras: 4 }]);
    await expect.poll(record, within).toMatchObject({ maxLoras: 4 });
    await writeFile(file, "no list");
    await expect.poll(serve.said, within).toContain("settings could not be read");
    expect(await record()).toMatchObject({ maxLoras: 4 });
    await say([{ ...engine, maxLoras: 4 }]);
  }
  {
    await using serve = start();
    await expect.poll(serve.said, within).toMatch(/"ready"/);
    expect(serve.said()).not.toContain("is not set up any more");
    expect(await record()).toMatchObject({ maxLoras: 4 });
    await say([]);
    await expect.poll(record, within).toBeUndefined();
  }
  await nc.close();
});

test("a base that is not on the volume yet is taken up when it is", async () => {
  const told: string[] = [];
  await say([engine]);
  await using _following = await followEngineResources({
    file,
    basesDir: bases,
    log,
    async onEngine({ problem, base }) {
      told.push(problem?.code ?? base.name);
    },
    async onGone() {},
    everyMs: 20,
    againMs: 100,
  });
  expect(told).toEqual(["BASE_MISSING"]);
  await symlink(smollm2Dir, join(bases, engine.base));
  await expect.poll(() => told.at(-1), within).toBe(engine.base);
  const count = told.length;
  await new Promise((resolve) => setTimeout(resolve, 300));
  expect(told).toHaveLength(count);
});
