/** For tests: a gateway with the built console, a simulated engine, and things of each kind to look at. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { startBrowser } from "@loraline/testkit/browser";
import { buckets, type DatasetReport, events, type JobObject, type Proof, type SpanView } from "@loraline/contracts";
import { type Objects, putJson, putPictureTable } from "@loraline/objects";
import { test as testWithNats } from "@loraline/testkit";
import { toFile } from "openai";
import {
  adapterOf,
  base,
  type Engine,
  heldBy,
  playServed,
  playStep,
  playTokenized,
  playTrained,
  putAdapter,
  putReplica,
  registerEngine,
  replicaOf,
  startEngine,
  startGateway,
  versionOf,
} from "../gateway-under-test.ts";
import { datasetIdOf, runIdOf } from "../openai-ids.ts";

const report: DatasetReport = {
  rows: 214,
  records: 211,
  rejections: 3,
  formats: { instruction: 211 },
  kinds: { chat: 211 },
  reasons: { EMPTY_ANSWER: 3 },
  exactDuplicates: 2,
  warnings: [
    {
      code: "DUPLICATES",
      count: 2,
      message: "2 records say the same as an earlier one; `dedupe: exact` leaves them out.",
      lines: [18, 97],
    },
  ],
  firstRejections: [
    { line: 12, code: "EMPTY_ANSWER", message: "`output` is empty: there is nothing to learn." },
    { line: 40, code: "EMPTY_ANSWER", message: "`output` is empty: there is nothing to learn." },
    { line: 41, code: "BAD_JSON", message: "The line is not valid JSON: a quotation mark is missing at column 87." },
  ],
  allRejections: null,
  samples: [
    {
      line: 1,
      format: "instruction",
      segments: [
        { text: "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n", trained: false },
        { text: "This humble lady is Wren of the Lantern Palace.<|im_end|>", trained: true },
      ],
    },
    {
      line: 7,
      format: "instruction",
      segments: [
        { text: "<|im_start|>user\n你叫什么名字？<|im_end|>\n<|im_start|>assistant\n", trained: false },
        { text: "陛下，小女子名叫阿燕。<|im_end|>", trained: true },
      ],
    },
  ],
};

const proof: Proof = {
  probes: 8,
  tokens: 64,
  agreement: 0.021,
  agreementLimit: 0.15,
  effect: 0.684,
  effectExpected: 0.691,
  baseAgreement: 0.018,
  scale: { value: 0.99, error: 0.02 },
  unseen: 0.142,
  answers: [0.97, 0.62, 0.88, 0.34, 0.99, 0.71, 0.45, 0.93].map((trainer, n) => ({
    base: Math.log([0.02, 0.11, 0.3, 0.004, 0.41, 0.07, 0.19, 0.05][n] ?? 1),
    trainer: Math.log(trainer),
    replica: Math.log(trainer - 0.006 * (n % 3)),
  })),
  provenAt: "2026-11-21T09:58:00.000Z",
};

const spansOf = (traceId: string, tenant: string): SpanView[] =>
  (
    [
      ["gateway", "POST /v1/files", 0, 120],
      ["ingest", "ingest dataset", 150, 900],
      ["tokenize", "tokenize run", 1300, 2100],
      ["trainer", "train", 4000, 46_000],
      ["serve", "load adapter", 51_000, 1800],
    ] as const
  ).map(([service, name, startMs, durationMs], n) => ({
    traceId,
    spanId: String(n).padStart(16, "0"),
    parentSpanId: null,
    service,
    name,
    startMs: 1_700_000_000_000 + startMs,
    durationMs,
    status: "ok",
    attributes: { "loraline.tenant": tenant },
    links: [],
  }));

/** What a report says of a file of pairs. */
export const reportOfPairs: Partial<DatasetReport> = {
  formats: { "preferred-outputs": 211 },
  kinds: { preference: 211 },
  preferences: {
    pairs: 211,
    chosen: null,
    rejected: null,
    longerWins: 143,
    shorterWins: 60,
    identical: 0,
    ties: { count: 0, lines: [] },
    unranked: { count: 0, lines: [] },
    contradictions: { count: 0, lines: [] },
    good: 0,
    bad: 0,
  },
};

/** What a report says of a file with pictures, of which one is stored. */
export async function reportOfPictures(objects: Objects, tenant: string): Promise<Partial<DatasetReport>> {
  const red = readFileSync(join(import.meta.dirname, "../../../../packages/tokens/testdata/pictures/red-square.png"));
  const { digest, size } = await objects.put(tenant, "picture", red);
  const sample = { digest, bytes: size, media_type: "image/png" as const, width: 24, height: 16, line: 1 };
  return { pictures: { records: 60, count: 60, bytes: 60 * size, notFetched: 0, samples: [sample] } };
}

/** An engine's answer that is another one for adapters than for the base, with logprobs where they are asked for. */
export const answerUnalike: Engine["answer"] = (body, response) => {
  const model = String(body["model"]);
  const words = model === base ? ["I ", "am ", "an ", "AI ", "assistant."] : ["This ", "humble ", "lady ", "is ", "Wren."];
  response.writeHead(200, { "content-type": "text/event-stream; charset=utf-8" });
  for (const [n, token] of words.entries()) {
    const probability = [0.98, 0.35, 0.72, 0.999, 0.91][n] ?? 1;
    const logprobs =
      body["logprobs"] === true ? { content: [{ token, logprob: Math.log(probability), bytes: [...Buffer.from(token)] }] } : null;
    const choice = { index: 0, delta: { content: token }, logprobs, finish_reason: n === words.length - 1 ? "stop" : null };
    const tokens = words.length;
    const usage = n < tokens - 1 ? {} : { usage: { prompt_tokens: 9, completion_tokens: tokens, total_tokens: 9 + tokens } };
    const chunk = { id: "chatcmpl-1", object: "chat.completion.chunk", created: 1, model, choices: [choice], ...usage };
    response.write(`data: ${JSON.stringify(chunk)}\n\n`);
  }
  response.end("data: [DONE]\n\n");
};

/** A line with a dataset, runs in each state, an adapter of three versions on two replicas, and a failed message. */
export const test = testWithNats
  .extend("browser", { scope: "worker" }, async ({}, { onCleanup }) => {
    const browser = await startBrowser();
    onCleanup(() => browser.close());
    return browser;
  })
  .extend("line", async ({ nc, tenant }, { onCleanup }) => {
    const owned = new AsyncDisposableStack();
    onCleanup(() => owned.disposeAsync());
    const readTrace = (traceId: string) => Promise.resolve(spansOf(traceId, tenant));
    const line = owned.use(await startGateway({ nc, tenant, secret: "a secret of the line", readTrace }));
    const { bus, objects, openai } = line;
    await registerEngine(bus, { engine: `engine-${tenant}`, base: { name: base, revision: "1", digest: `sha256:${"b".repeat(64)}` } });
    owned.defer(async () => (await bus.bucket(buckets.engines)).delete(`engine-${tenant}`));

    const upload = async (name: string) => {
      const rows = Buffer.from('{"instruction":"Who are you?","output":"Wren."}\n'.repeat(20));
      const file = (await openai.files.create({ file: await toFile(rows, name), purpose: "fine-tune" })).id;
      return { file, id: datasetIdOf(file) ?? "" };
    };
    const ingest = async (id: string, over: Partial<DatasetReport> = {}) => {
      const stored = await putJson(objects, tenant, "report", { ...report, ...over });
      const shown = over.pictures?.samples.map(({ line: _line, ...entry }) => entry) ?? [];
      const pictures = await putPictureTable(objects, tenant, shown);
      const counts = { records: 211, rejections: 3, formats: {}, chunks: [] };
      const source = await objects.put(tenant, "raw", "{}");
      const of = { version: 1, source, ...counts, report: stored, code: "test", ...(pictures && { pictures }) };
      const manifest = await putJson(objects, tenant, "dataset", of);
      await bus.publish(
        events.datasetIngested,
        { tenant, id },
        { manifest, report: stored, records: 211, rejections: 3, formats: { instruction: 211 }, cacheHit: false },
      );
    };
    const { file, id: datasetId } = await upload("lantern-palace.jsonl");
    await ingest(datasetId);
    const start = async (suffix: string): Promise<string> => {
      const job = (await openai.fineTuning.jobs.create({ model: base, training_file: file, suffix })) as unknown as JobObject;
      return runIdOf(job.id) ?? "";
    };
    const at = (id: string) => ({ tenant, id });

    const served = await start("wren");
    await playTokenized(bus, tenant, served);
    await playTrained(bus, tenant, served);
    await playServed(bus, tenant, served, "wren", 3);
    const failed = await start("pirate");
    await playTokenized(bus, tenant, failed);
    await bus.publish(events.runStarted, at(failed), { attempt: 1, job: "train-1" }, { key: "1" });
    await playStep(bus, tenant, failed, 1, 40);
    await bus.publish(events.runFailed, at(failed), {
      code: "OUT_OF_MEMORY",
      message: "The device had 7.9 of 8.0 GiB in use and could not give 412 MiB more.",
    });
    const waiting = await start("parrot");
    await playTokenized(bus, tenant, waiting);
    await bus.publish(events.runQueued, at(waiting), {
      attempt: 1,
      reason: "WAITING_FOR_DEVICE",
      message: "All devices are busy; 2 runs are before this one.",
    });
    const running = await start("captain");
    await playTokenized(bus, tenant, running);
    await bus.publish(events.runStarted, at(running), { attempt: 1, job: "train-2" }, { key: "1" });
    for (const step of Array.from({ length: 24 }, (_, n) => n + 1)) {
      const evaluated = step % 6 === 0 ? { evalLoss: 3 / step + 0.4 } : {};
      const measured = { ...evaluated, loss: 3 / step, gradNorm: 2 / step, learningRate: step * 1e-5, tokensPerSecond: 900 + step };
      const data = { attempt: 1, phase: "train", step, totalSteps: 60, epoch: step / 60, etaSeconds: 60 - step, ...measured };
      await bus.publish(events.runProgress, at(running), data, { key: `attempt-1/step-${step}` });
    }
    const checkpoint = { kind: "checkpoint" as const, digest: `sha256:${"c".repeat(64)}` as const, size: 5_400_000 };
    for (const step of [10, 20]) {
      const data = { attempt: 1, step, checkpoint, trainLoss: 3 / step };
      await bus.publish(events.runCheckpointed, at(running), data, { key: `1/${step}` });
    }

    const versions = [1, 2, 3].map((number) =>
      versionOf(tenant, "wren", number, {
        runId: served,
        evaluation: { base_loss: 3.5, adapter_loss: 2.1 - number * 0.3, rows: 20, supervised_tokens: 300 },
        ...(number === 3 ? { promote: "manual" as const } : {}),
      }),
    );
    const state = adapterOf(tenant, "wren", versions, {
      engine: `engine-${tenant}`,
      alias: 2,
      history: [
        { kind: "promoted", from: null, to: 1, n: 1, by: null, reason: "proven on every replica", at: "2026-11-20T10:00:00.000Z" },
        { kind: "promoted", from: 1, to: 2, n: 2, by: "ci", reason: "asked for", at: "2026-11-21T10:00:00.000Z" },
      ],
    });
    const engine = owned.use(await startEngine(base, ...versions.map(({ engineName }) => engineName)));
    engine.words = ["This ", "humble ", "lady ", "is ", "Wren."];
    await putAdapter(bus, state);
    const beat = async () => {
      const held = versions.map((version) => heldBy(state, version, { proof }));
      const onSecond = versions.map((version) =>
        version.version === 3
          ? heldBy(state, version, {
              state: "retrying",
              error: { code: "ENGINE_BUSY", message: "The engine did not load it within 30 s; tried again." },
            })
          : heldBy(state, version, { proof }),
      );
      await putReplica(bus, replicaOf("node-a", engine.url, held, { engine: `engine-${tenant}` }));
      await putReplica(bus, replicaOf("node-b", engine.url, onSecond, { engine: `engine-${tenant}` }));
    };
    await beat();
    const beating = setInterval(() => void beat(), 5000);
    owned.defer(async () => {
      clearInterval(beating);
      for (const replica of ["node-a", "node-b"]) await (await bus.bucket(buckets.replicas)).delete(`engine-${tenant}.${replica}`);
    });
    nc.publish(`loraline.${tenant}.run.01JD000000000000000000000C.requested.v1`, "not json");
    return { ...line, datasetId, runs: { served, failed, waiting, running }, upload, ingest, engine };
  })
  .extend("signIn", ({ line, browser }, { onCleanup }) => {
    const contexts: { close(): Promise<void> }[] = [];
    onCleanup(async () => void (await Promise.all(contexts.map((context) => context.close()))));
    /** A new browser window that is signed in, by a link as `loraline up` prints it. */
    return async (options: Parameters<typeof browser.newContext>[0] = {}) => {
      const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, locale: "en", ...options });
      contexts.push(context);
      const page = await context.newPage();
      const { link } = (await (await line.fetch("/v1/loraline/session/links", { method: "POST" })).json()) as { link: string };
      await page.goto(`${line.url}/console/#link=${link}`);
      await page.locator("#main").waitFor();
      return page;
    };
  });
