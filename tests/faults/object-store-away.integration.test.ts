/**
 * The object store is away for 40 s while a dataset is read, longer than a message's six deliveries take, and again while the adapter is
 * stored. Services are separate processes, as in a cluster, with a network to S3 that the test can cut.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { ensureStreams } from "@loraline/bus";
import type { RunState } from "@loraline/contracts";
import { spawnS3Server, startProxy } from "@loraline/testkit";
import { afterEach, beforeEach, expect, it } from "vitest";
import { base, eventually, jsonLines, sampleRows, scratchDir } from "../line-under-test.ts";
import { createServices, registerEngine, spawnNatsForServices } from "../services-under-test.ts";

const outageMs = 40_000;

let stack: AsyncDisposableStack;
beforeEach(() => {
  stack = new AsyncDisposableStack();
});
afterEach(() => stack.disposeAsync(), 60_000);

async function services(dir: string) {
  const nats = stack.use(await spawnNatsForServices(dir));
  const s3 = stack.use(await spawnS3Server());
  const proxy = stack.use(await startProxy(s3.endpoint));
  const nc = await nats.connect();
  stack.defer(() => nc.close());
  await ensureStreams(nc);
  await registerEngine(nc);
  const started = stack.use(
    await createServices({
      dir,
      natsUrl: () => nats.url,
      script: { steps: 40, save_steps: 1000, step_ms: 150 },
      env: {
        S3_BUCKET: s3.bucket,
        S3_ENDPOINT: proxy.url,
        AWS_ACCESS_KEY_ID: s3.credentials.accessKeyId,
        AWS_SECRET_ACCESS_KEY: s3.credentials.secretAccessKey,
      },
    }),
  );
  return { proxy, started };
}

it("delays what is under way, says so where users and operators look, and judges nothing", { timeout: 900_000 }, async () => {
  const scratch = stack.use(await scratchDir());
  const { proxy, started } = await services(scratch.path);
  const line = started.client(await started.start("gateway"));
  await started.start("tokenize");
  await started.start("train");
  // Nobody reads it yet.
  const rows = new File([jsonLines(await sampleRows(20))], "rows.jsonl");
  const file = await line.openai.files.create({ file: rows, purpose: "fine-tune" });
  const job = await line.openai.fineTuning.jobs.create({ model: base, training_file: file.id, suffix: "patient" });
  const runId = job.id.replace("ftjob-", "");
  const run = (): Promise<RunState> => line.getRun({ run_id: runId });
  await proxy.cut("refused");
  const cutAt = performance.now();
  // The service waits for the store, but it must have started.
  const ingest = await started.start("ingest", { wait: false });
  await eventually("ingest has started", 120_000, async () => (/^objects: /m.test(await ingest.readyz()) ? true : undefined));

  const away = /the object store does not answer .*ECONNREFUSED/;
  const details = async (): Promise<string | undefined> => (await line.openai.files.retrieve(file.id)).status_details;
  await eventually("the file says what it waits for", 120_000, async () => (away.test((await details()) ?? "") ? true : undefined));
  expect(await details()).toMatch(/^waiting: /);
  await eventually("so does the run", 120_000, async () => (away.test((await run()).queue?.message ?? "") ? true : undefined));
  expect(await run()).toMatchObject({ phase: "requested", queue: { reason: "STORE_UNAVAILABLE" } });
  expect(await ingest.readyz()).toMatch(/^objects: the object store does not answer/);

  await sleep(outageMs / 2);
  await ingest.kill();
  await ingest.spawn();
  await sleep(Math.max(0, outageMs - (performance.now() - cutAt)));
  expect((await line.openai.files.retrieve(file.id)).status, "nothing was judged").toBe("uploaded");
  await proxy.restore();

  await eventually("it is read, tokenized, and trains", 120_000, async () => ((await run()).phase === "running" ? true : undefined));
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
