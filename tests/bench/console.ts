/**
 * The console in Chromium: how soon it can be used, and how it behaves with much to show. The gateway and all services are real, engine and
 * trainer simulated. Where a list has to be longer than a line can make in a minute, the page is given the answer instead of the gateway.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Page, startBrowser } from "@loraline/testkit/browser";
import { eventually, jsonLines, runOver, sampleRows } from "../line-under-test.ts";
import { bootstrapKey, type SimulatedLine, startSimulatedLine, tenant } from "../services-under-test.ts";
import { percentile, type Row } from "./table.ts";

const tries = 5;
/** Chromium's own presets, in bytes per second and milliseconds. */
const networks = {
  "3G (1.6 Mbit/s, 562 ms)": { downloadThroughput: 180_000, uploadThroughput: 84_375, latency: 562 },
  "slow 3G (400 kbit/s, 2 s)": { downloadThroughput: 50_000, uploadThroughput: 50_000, latency: 2000 },
};

/** Notes when the page first had its heading and nothing left to load. */
const whenUsable = `new MutationObserver((_, observer) => {
  const main = document.querySelector("#main h1");
  if (main === null || document.querySelector(".skeleton") !== null) return;
  window.usableAt = performance.now();
  observer.disconnect();
}).observe(document, { childList: true, subtree: true });`;

type Browser = Awaited<ReturnType<typeof startBrowser>>;

export async function benchConsole(): Promise<Row[]> {
  const dir = await mkdtemp(join(tmpdir(), "loraline-bench-console-"));
  await using owned = new AsyncDisposableStack();
  owned.defer(() => rm(dir, { recursive: true, force: true }));
  const env = { LORALINE_SECRET: "a secret of the bench" };
  const line = owned.use(await startSimulatedLine({ dir, script: { simulated: true, steps: 20, save_steps: 10, step_ms: 10 }, env }));
  const browser = owned.use(await startBrowser());
  const at = await prepare(line);
  const rows: Row[] = [];
  const only = process.env["BENCH_CONSOLE"];
  for (const part of [firstView, slowNetwork, longCurve, manyRows, manyRuns, manyAdapters, dyingGateway].filter(
    ({ name }) => only === undefined || only.includes(name),
  ))
    rows.push(...(await part(browser, at)));
  return rows.map((row) => ({ ...row, what: `Console: ${row.what}`, detail: `${row.detail}; \`console\`` }));
}

interface At {
  line: SimulatedLine;
  url: string;
  runId: string;
  datasetId: string;
  run: Record<string, unknown>;
}

/** A run that has ended, and a file of ten thousand rows. */
async function prepare(line: SimulatedLine): Promise<At> {
  const gateway = line.gateways[0];
  if (gateway === undefined) throw new Error("no gateway");
  const client = line.services.client(gateway);
  const upload = async (name: string, text: string) =>
    (await client.openai.files.create({ file: new File([text], name), purpose: "fine-tune" })).id;
  const small = await upload("small.jsonl", jsonLines(await sampleRows(24)));
  const many = await upload(
    "many.jsonl",
    jsonLines(Array.from({ length: 10_000 }, (_, n) => ({ instruction: `Question ${n}?`, output: `Answer ${n}.` }))),
  );
  await client.openai.files.waitForProcessing(many, { pollInterval: 200 });
  const job = await client.openai.fineTuning.jobs.create({ model: "smollm2-135m-instruct", training_file: small, suffix: "wren" });
  const runId = job.id.replace("ftjob-", "");
  const run = (await runOver(client, runId)) as unknown as Record<string, unknown>;
  return { line, url: gateway.url, runId, run, datasetId: many.replace("file-", "") };
}

async function open(browser: Browser, { url }: At): Promise<{ page: Page } & AsyncDisposable> {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, locale: "en" });
  const answer = await context.request.post(`${url}/v1/loraline/session`, { data: { api_key: bootstrapKey } });
  if (!answer.ok()) throw new Error(await answer.text());
  await context.addInitScript(whenUsable);
  return { page: await context.newPage(), [Symbol.asyncDispose]: () => context.close() };
}

const usableMs = (page: Page): Promise<number> =>
  eventually("the page can be used", 120_000, async () => (await page.evaluate<number | null>("window.usableAt ?? null")) ?? undefined);
const median = (values: readonly number[]): string => `${Math.round(Number(percentile(values, 50)))} ms`;

async function firstView(browser: Browser, at: At): Promise<Row[]> {
  const [cold, again, cpu]: [number[], number[], number[]] = [[], [], []];
  let sizes = { files: 0, data: 0 };
  for (let n = 0; n < tries; n++) {
    await using opened = await open(browser, at);
    const { page } = opened;
    const devtools = await page.context().newCDPSession(page);
    await devtools.send("Network.enable");
    await devtools.send("Performance.enable", { timeDomain: "threadTicks" });
    const sums = { files: 0, data: 0 };
    const kinds = new Map<string, keyof typeof sums>();
    devtools.on("Network.requestWillBeSent", ({ requestId, request: { url } }) =>
      kinds.set(requestId, new URL(url).pathname.startsWith("/console") ? "files" : "data"),
    );
    devtools.on(
      "Network.loadingFinished",
      ({ requestId, encodedDataLength }) => (sums[kinds.get(requestId) ?? "data"] += encodedDataLength),
    );
    await page.goto(`${at.url}/console/`);
    cold.push(await usableMs(page));
    sizes = { ...sums };
    const { metrics } = await devtools.send("Performance.getMetrics");
    cpu.push((metrics.find(({ name }) => name === "TaskDuration")?.value ?? Number.NaN) * 1000);
    await page.goto(`${at.url}/console/runs/${at.runId}`);
    again.push(await usableMs(page));
  }
  return [
    {
      what: "first view, over the wire",
      value: `files ${Math.round(sizes.files / 1000)} kB, data ${Math.round(sizes.data / 1000)} kB`,
      detail: "compressed files of the Start page, headers included; what the API told it",
    },
    {
      what: "first view, from the address to a page that can be used",
      value: `${median(cold)}, main thread ${median(cpu)} of CPU`,
      detail: `empty cache, median of ${tries}`,
    },
    { what: "a run's page by its address", value: median(again), detail: `files in the cache, median of ${tries}` },
  ];
}

async function slowNetwork(browser: Browser, at: At): Promise<Row[]> {
  const rows: Row[] = [];
  for (const [name, conditions] of Object.entries(networks)) {
    await using opened = await open(browser, at);
    const { page } = opened;
    const devtools = await page.context().newCDPSession(page);
    await devtools.send("Network.enable");
    await devtools.send("Network.emulateNetworkConditions", { offline: false, ...conditions });
    await page.goto(`${at.url}/console/`, { timeout: 120_000 });
    const cold = await usableMs(page);
    const begun = performance.now();
    await page.getByRole("link", { name: "Runs", exact: true }).click();
    await page.locator("[aria-posinset='1']").waitFor();
    rows.push({ what: `first view on ${name}`, value: `${(cold / 1000).toFixed(1)} s`, detail: "empty cache" });
    rows.push({ what: `the next page on ${name}`, value: `${((performance.now() - begun) / 1000).toFixed(1)} s`, detail: "Start → Runs" });
  }
  return rows;
}

interface Felt {
  frames: number[];
  /** Main thread, milliseconds of CPU. */
  busyMs: number;
  heapBytes: number;
}

/** What a page's reader feels while something is done: the time between frames, and how long the main thread worked. */
async function feel(page: Page, act: () => Promise<void>): Promise<Felt> {
  const devtools = await page.context().newCDPSession(page);
  // CPU time, since a busy machine changes only wall time.
  await devtools.send("Performance.enable", { timeDomain: "threadTicks" });
  const read = async (name: string): Promise<number> => {
    const { metrics } = await devtools.send("Performance.getMetrics");
    return metrics.find((one) => one.name === name)?.value ?? Number.NaN;
  };
  await page.evaluate(`window.frames_ = []; window.last_ = performance.now(); window.on_ = true;
    (function tick() { const now = performance.now(); window.frames_.push(now - window.last_); window.last_ = now; if (window.on_) requestAnimationFrame(tick); })()`);
  const before = await read("TaskDuration");
  await act();
  const busyMs = ((await read("TaskDuration")) - before) * 1000;
  const frames = await page.evaluate<number[]>("window.on_ = false; window.frames_");
  await devtools.send("HeapProfiler.collectGarbage");
  const heapBytes = await read("JSHeapUsedSize");
  await devtools.detach();
  return { frames: frames.slice(1), busyMs, heapBytes };
}

const feltAs = ({ frames, busyMs, heapBytes }: Felt): string =>
  `frames ${Math.round(Number(percentile(frames, 50)))} ms, p95 ${Math.round(Number(percentile(frames, 95)))} ms, longest ${Math.round(Math.max(...frames))} ms; main thread ${Math.round(busyMs)} CPU ms; heap ${Math.round(heapBytes / 1e6)} MB`;

const scroll = async (page: Page): Promise<void> => {
  for (let n = 0; n < 40; n++) {
    await page.mouse.wheel(0, 600);
    await page.waitForTimeout(16);
  }
};

/** From a key to the frame that shows what it did. */
async function typed(page: Page, text: string): Promise<number[]> {
  const input = page.getByRole("searchbox").first();
  await input.focus();
  await page.evaluate(`window.keys_ = []; document.addEventListener("input", () => {
    const begun = performance.now();
    requestAnimationFrame(() => setTimeout(() => window.keys_.push(performance.now() - begun)));
  }, { capture: true })`);
  for (const letter of text) {
    await page.keyboard.type(letter);
    await page.waitForTimeout(60);
  }
  return eventually("each key is shown", 30_000, async () => {
    const times = await page.evaluate<number[]>("window.keys_");
    return times.length >= text.length ? times : undefined;
  });
}
const keysAs = (times: number[]): string => `${median(times)}, longest ${Math.round(Math.max(...times))} ms`;

async function longCurve(browser: Browser, at: At): Promise<Row[]> {
  await using opened = await open(browser, at);
  const { page } = opened;
  const data = Array.from({ length: 10_000 }, (_, n) => ({
    step: n + 1,
    train_loss: 3 / Math.sqrt(n + 1) + 0.1 * Math.sin(n / 3),
    valid_loss: n % 100 === 99 ? 3 / Math.sqrt(n + 1) + 0.2 : null,
    valid_mean_token_accuracy: null,
    learning_rate: 1e-4,
    grad_norm: 1 + Math.sin(n),
    tokens_per_second: 900,
  }));
  await page.route("**/metrics*", (route) => route.fulfill({ json: { run_id: at.runId, data } }));
  await page.goto(`${at.url}/console/runs/${at.runId}`);
  const shownMs = await usableMs(page);
  await page.getByRole("img", { name: /10,000 points/ }).waitFor();
  const box = await page.locator(".u-over").boundingBox();
  if (box === null) throw new Error("no curve");
  await page.mouse.move(box.x + 20, box.y + 100);
  const zoomed = await feel(page, async () => {
    await page.mouse.down();
    for (let x = 20; x < box.width * 0.8; x += 12) await page.mouse.move(box.x + x, box.y + 100);
    await page.mouse.up();
    await page.waitForTimeout(300);
  });
  const tab = await feel(page, async () => {
    await page.getByRole("tab", { name: "Gradient norm" }).click();
    await page.getByRole("img", { name: /^Gradient norm/ }).waitFor();
  });
  return [
    { what: "a run of 10,000 steps, from its address to its curve", value: `${Math.round(shownMs)} ms`, detail: "files in no cache" },
    { what: "the same, dragging over the curve to enlarge it", value: feltAs(zoomed), detail: "software rendering" },
    { what: "the same, to another curve", value: feltAs(tab), detail: "read, joined and drawn anew" },
  ];
}

async function manyRows(browser: Browser, at: At): Promise<Row[]> {
  await using opened = await open(browser, at);
  const { page } = opened;
  await page.goto(`${at.url}/console/datasets/${at.datasetId}`);
  const begun = performance.now();
  await page.getByRole("button", { name: "Show the rows of the file" }).click();
  await page.getByText("10,000 of 10,000 rows").waitFor();
  const shown = performance.now() - begun;
  await page.locator(".row-text").first().hover();
  const scrolled = await feel(page, () => scroll(page));
  const keys = await typed(page, "question 99");
  return [
    {
      what: "ten thousand rows of a file, from the click to the rows",
      value: `${Math.round(shown)} ms`,
      detail: "the file is read by the page",
    },
    { what: "the same, scrolling", value: feltAs(scrolled), detail: "24,000 pixels in 40 turns of the wheel" },
    { what: "the same, a key in the search → the next frame", value: keysAs(keys), detail: "`question 99`" },
  ];
}

async function manyRuns(browser: Browser, at: At): Promise<Row[]> {
  await using opened = await open(browser, at);
  const { page } = opened;
  const data = Array.from({ length: 1000 }, (_, n) => ({
    ...at.run,
    runId: `01JD0000000000000000${String(n).padStart(6, "0")}`,
    spec: { ...(at.run["spec"] as object), adapter: `adapter-${n % 40}` },
  }));
  await page.route("**/v1/loraline/runs?*", (route) => route.fulfill({ json: { data, has_more: false } }));
  await page.goto(`${at.url}/console/runs`);
  const shownMs = await usableMs(page);
  await page.mouse.move(640, 500);
  const scrolled = await feel(page, () => scroll(page));
  await page.evaluate("scrollTo(0, 0)");
  const keys = await typed(page, "adapter 7");
  return [
    {
      what: "a thousand runs, from the address",
      value: `${Math.round(shownMs)} ms`,
      detail: "one page of the API, which gives a hundred at a time",
    },
    { what: "the same, scrolling", value: feltAs(scrolled), detail: "24,000 pixels in 40 turns of the wheel" },
    { what: "the same, a key in the search → the next frame", value: keysAs(keys), detail: "`adapter 7`" },
  ];
}

async function manyAdapters(browser: Browser, at: At): Promise<Row[]> {
  await using opened = await open(browser, at);
  const { page } = opened;
  const client = at.line.services.client(at.line.gateways[0] ?? fail());
  const { data: known } = await client.listAdapters();
  const one = known[0] ?? fail();
  const view = await client.getAdapter({ adapter: "wren" });
  const [version] = view.adapter.versions;
  const versions = Array.from({ length: 20 }, (_, n) => ({ ...version, version: n + 1, engineName: `acme.wren.v${n + 1}` }));
  const replica = view.replicas[0] ?? fail();
  const replicas = Array.from({ length: 20 }, (_, n) => ({
    ...replica,
    replica: `replica-${n}`,
    adapters: versions.map((each) => ({ ...replica.adapters[0], version: each.version, engineName: each.engineName })),
  }));
  const adapters = Array.from({ length: 200 }, (_, n) => ({ ...one, adapter: { ...one.adapter, adapter: `adapter-${n}` } }));
  await page.route("**/v1/loraline/adapters", (route) => route.fulfill({ json: { object: "list", data: adapters, has_more: false } }));
  await page.route("**/v1/loraline/adapters/wren", (route) =>
    route.fulfill({ json: { ...view, adapter: { ...view.adapter, versions }, replicas } }),
  );
  await page.goto(`${at.url}/console/adapters`);
  const listMs = await usableMs(page);
  const scrolled = await feel(page, () => scroll(page));
  const keys = await typed(page, "adapter 7");
  await page.goto(`${at.url}/console/adapters/wren`);
  const matrixMs = await usableMs(page);
  await page.getByText("proven").first().waitFor();
  const matrix = await feel(page, () => scroll(page));
  return [
    { what: "200 adapters, from the address", value: `${Math.round(listMs)} ms`, detail: "" },
    { what: "the same, scrolling", value: feltAs(scrolled), detail: "" },
    { what: "the same, a key in the search → the next frame", value: keysAs(keys), detail: "`adapter 7`" },
    {
      what: "one adapter of 20 versions on 20 replicas, from the address",
      value: `${Math.round(matrixMs)} ms`,
      detail: "400 places of the matrix",
    },
    { what: "the same, scrolling", value: feltAs(matrix), detail: "" },
  ];
}

async function dyingGateway(browser: Browser, at: At): Promise<Row[]> {
  const gateway = at.line.gateways[0] ?? fail();
  await using opened = await open(browser, at);
  const { page } = opened;
  await page.goto(`${at.url}/console/runs/${at.runId}`);
  await page.getByText("Live", { exact: true }).waitFor();
  await gateway.kill();
  const killed = performance.now();
  await page.getByRole("alert").getByText("The connection is lost.").waitFor();
  const saidMs = performance.now() - killed;
  await gateway.spawn();
  await eventually("the gateway answers", 60_000, async () => ((await fetch(`${at.url}/healthz`)).ok ? true : undefined));
  const back = performance.now();
  await page.getByText("Live", { exact: true }).waitFor({ timeout: 60_000 });
  const liveMs = performance.now() - back;
  return [
    { what: "`kill -9` of the gateway → the page says that it is not of now", value: `${Math.round(saidMs)} ms`, detail: "" },
    {
      what: "the gateway answers again → the page is of now",
      value: `${(liveMs / 1000).toFixed(1)} s`,
      detail: "it asks every 2 s, Chromium every 3 s",
    },
  ];
}

function fail(): never {
  throw new Error(`the line of ${tenant} has none`);
}
