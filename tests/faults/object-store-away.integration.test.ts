/**
 * The object store is away for 40 s while a dataset is read, longer than a message's six deliveries take, and again while the adapter is
 * stored. Services are separate processes, as in a cluster, with a network to S3 that the test can cut.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:net";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { createBus, ensureStreams } from "@loraline/bus";
import { buckets, type RunState } from "@loraline/contracts";
import { createLog, createTelemetry } from "@loraline/runtime";
import { spawnNatsServer, spawnS3Server, startProxy } from "@loraline/testkit";
import { afterEach, beforeEach, expect, it } from "vitest";
import { base, clientOf, eventually, jsonLines, root, sampleRows, scratchDir } from "../line-under-test.ts";

const key = "ll-object-store-is-away-in-this-test";
const outageMs = 40_000;

let stack: AsyncDisposableStack;
beforeEach(() => {
  stack = new AsyncDisposableStack();
});
afterEach(() => stack.disposeAsync(), 60_000);

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, "close");
  return port;
}

/** Starts services; `health` has the address of each one's health endpoint. */
async function services(dir: string) {
  const nats = stack.use(await spawnNatsServer());
  const s3 = stack.use(await spawnS3Server());
  const proxy = stack.use(await startProxy(s3.endpoint));
  const nc = await nats.connect();
  stack.defer(() => nc.close());
  await ensureStreams(nc);
  const log = createLog({ service: "test", level: "silent" });
  const bus = createBus({ nc, log, telemetry: createTelemetry({ service: "test" }), source: "test" });
  await (
    await bus.bucket(buckets.engines)
  ).put("local", {
    engine: "local",
    base: { name: base, revision: "r", digest: `sha256:${"0".repeat(64)}` },
    maxLoraRank: 32,
    maxLoras: 4,
    maxCpuLoras: 16,
    maxModelLen: 2048,
    updatedAt: new Date().toISOString(),
  });
  const port = await freePort();
  const env = {
    PATH: process.env["PATH"],
    HOME: process.env["HOME"],
    LOG_LEVEL: "error",
    NATS_URL: nats.url,
    S3_BUCKET: s3.bucket,
    S3_ENDPOINT: proxy.url,
    AWS_ACCESS_KEY_ID: s3.credentials.accessKeyId,
    AWS_SECRET_ACCESS_KEY: s3.credentials.secretAccessKey,
    HOST: "127.0.0.1",
    PORT: String(port),
    METRICS_PORT: "0",
    BOOTSTRAP_TENANT: "acme",
    BOOTSTRAP_API_KEY: key,
    LORALINE_BASES_DIR: join(root, ".loraline/bases"),
    LORALINE_PYTHON: join(root, ".venv/bin/python"),
    LORALINE_TRAINER: join(root, "services/train/src/scripted-trainer.py"),
    TRAIN_ATTEMPTS_DIR: join(dir, "jobs"),
    SCRIPT: JSON.stringify({ steps: 40, save_steps: 1000, step_ms: 150 }),
  };
  await mkdir(env.TRAIN_ATTEMPTS_DIR);
  type Service = { child: ChildProcess; readyz: () => Promise<string> };
  const start = async (name: "gateway" | "ingest" | "tokenize" | "train"): Promise<Service> => {
    const healthPort = await freePort();
    const child = spawn(process.execPath, ["--conditions=@loraline/source", join(root, `services/${name}/src/main.ts`)], {
      env: { ...env, HEALTH_PORT: String(healthPort) },
      stdio: ["ignore", "inherit", "inherit"],
    });
    const exited = once(child, "exit");
    stack.defer(async () => {
      if (child.exitCode === null && child.signalCode === null) child.kill("SIGTERM");
      await exited;
    });
    const readyz = async (): Promise<string> => (await fetch(`http://127.0.0.1:${healthPort}/readyz`)).text();
    // The service may wait for the store, but it must have started.
    await eventually(`${name} has started`, 60_000, async () => (/^(?:ok|objects: .*)$/m.test(await readyz()) ? true : undefined));
    return { child, readyz };
  };
  return { proxy, start, line: clientOf({ url: `http://127.0.0.1:${port}`, apiKey: key }) };
}

it("delays what is under way, says so where users and operators look, and judges nothing", { timeout: 900_000 }, async () => {
  const scratch = stack.use(await scratchDir());
  const { proxy, start, line } = await services(scratch.path);
  await start("gateway");
  await start("tokenize");
  await start("train");
  // Nobody reads it yet.
  const rows = new File([jsonLines(await sampleRows(20))], "rows.jsonl");
  const file = await line.openai.files.create({ file: rows, purpose: "fine-tune" });
  const job = await line.openai.fineTuning.jobs.create({ model: base, training_file: file.id, suffix: "patient" });
  const runId = job.id.replace("ftjob-", "");
  const run = (): Promise<RunState> => line.getRun({ run_id: runId });
  await proxy.cut("refused");
  const cutAt = performance.now();
  const first = await start("ingest");

  const away = /the object store does not answer .*ECONNREFUSED/;
  const details = async (): Promise<string | undefined> => (await line.openai.files.retrieve(file.id)).status_details;
  await eventually("the file says what it waits for", 20_000, async () => (away.test((await details()) ?? "") ? true : undefined));
  expect(await details()).toMatch(/^waiting: /);
  await eventually("so does the run", 20_000, async () => (away.test((await run()).queue?.message ?? "") ? true : undefined));
  expect(await run()).toMatchObject({ phase: "requested", queue: { reason: "STORE_UNAVAILABLE" } });
  expect(await first.readyz()).toMatch(/^objects: the object store does not answer/);

  await sleep(outageMs / 2);
  first.child.kill("SIGKILL");
  await start("ingest");
  await sleep(Math.max(0, outageMs - (performance.now() - cutAt)));
  expect((await line.openai.files.retrieve(file.id)).status, "nothing was judged").toBe("uploaded");
  await proxy.restore();

  await eventually("it is read, tokenized, and trains", 60_000, async () => ((await run()).phase === "running" ? true : undefined));
  expect((await line.openai.files.retrieve(file.id)).status_details).toBeNull();
  expect((await run()).queue).toBeNull();
  await proxy.cut("silent");
  await eventually("the adapter waits for the store", 90_000, async () =>
    (await run()).queue?.message.startsWith("to store ") ? true : undefined,
  );
  expect(await run()).toMatchObject({ phase: "running", trained: null, error: null });
  await sleep(outageMs / 3);
  await proxy.restore();
  const trained = await eventually("it is stored", 90_000, async () => {
    const now = await run();
    if (now.error !== null) throw new Error(now.error.message);
    return now.phase === "trained" ? now : undefined;
  });
  expect(trained).toMatchObject({ attempt: 1, lostAttempts: 0, queue: null, trained: { steps: 40 } });
  expect((await line.listFailedMessages()).data).toEqual([]);
});
