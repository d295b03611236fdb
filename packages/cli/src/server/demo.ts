/** `loraline demo`: a real dataset becomes a proven, answering adapter, before your eyes; and every claim is checked. */
import { mkdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type ApiClient, createApiClient } from "@loraline/client";
import type { Proof, RunState, SpanView } from "@loraline/contracts";
import { clearStateDir, type LineOptions, startLine } from "@loraline/local";
import { exitCodes } from "../failure.ts";
import { followRun } from "../runs/follow-run.ts";
import type { RunFile } from "../runs/run-file.ts";
import { proofOf } from "../adapters/show-adapter.ts";
import { describeRun, modelOf, proofLine } from "../runs/show-run.ts";
import { startRun } from "../runs/start-run.ts";
import { bold, dim, duration, green, red, shaped, shortPath, type Terminal, wrap, writeJson, writeLine } from "../terminal.ts";
import { newsLine } from "./up.ts";
import { spanOf, waterfall } from "../runs/waterfall.ts";

/** What `summary.json` holds. Times in milliseconds; `startMs` since the epoch. */
export interface DemoSummary {
  runId: string;
  traceId: string;
  adapter: string;
  version: number;
  digest: string;
  baseAnswers: string[];
  adapterAnswers: string[];
  proof: Proof | null;
  spans: { service: string; name: string; startMs: number; durationMs: number }[];
  stagesMs: { ingest: number; tokenize: number; train: number; serve: number };
  timeToServeMs: number;
  trainTokensPerSecond: number;
}

const adapter = "court-lady";

/** Settings that were found by trying: after less than a minute on two cores, the persona shows on questions that it has not seen. */
const settings: RunFile = {
  lora: { r: 8, lora_alpha: 16, target_modules: "all-linear" },
  training: {
    per_device_train_batch_size: 4,
    num_train_epochs: 1,
    learning_rate: 2e-3,
    lr_scheduler_type: "cosine",
    warmup_steps: 0.1,
    save_steps: 10,
  },
};

/** Questions that are not in the dataset. */
const questions = [
  "What is your opinion about rain?",
  "How do I bake bread?",
  "Please describe a mountain.",
  "What should I do on Sunday?",
];

/** What tells the persona: every row of the dataset says one of these, and no plain assistant does. */
const markers = /your majesty|humble lady/i;

/** Services that a complete trace passes through, from the upload to the answer. */
const stations = ["gateway", "ingest", "tokenize", "train", "courier", "trainer", "serve", "agent"];

const stageServices = {
  ingest: ["ingest"],
  tokenize: ["tokenize"],
  train: ["train", "courier", "trainer"],
  serve: ["serve", "agent"],
} as const;

/** @returns the exit code. */
export async function runDemo(
  options: Omit<LineOptions, "onNews"> & { sample: string; demoDir: string; json: boolean },
  terminal: Terminal,
): Promise<number> {
  const { sample, demoDir, json, ...lineOptions } = options;
  const say = (text = ""): void => writeLine(json ? terminal.err : terminal.out, text);
  const summaryFile = join(demoDir, "summary.json");
  await mkdir(demoDir, { recursive: true });
  await clearStateDir(lineOptions.stateDir, lineOptions.pid);
  await rm(summaryFile, { force: true });

  say(bold("1. The server starts"));
  let engineReady = false;
  await using server = await startLine({
    ...lineOptions,
    onNews(news) {
      if (news.kind === "engine-ready") engineReady = true;
      else if (news.kind !== "up") say(newsLine(news));
    },
  });
  say(`   ${server.url}; NATS and vLLM are its children, vLLM is still starting`);

  say(bold(`\n2. ${shortPath(sample)} becomes the adapter ${adapter}`));
  const api = createApiClient(server);
  const [base] = server.bases;
  const { runId } = await startRun(api, { files: [sample], base, adapter, settings }, terminal);
  const run = await followRun(api, runId, terminal);
  if (run.finishedAt === null) return exitCodes.interrupted;
  const view = run.served === null ? undefined : await api.getAdapter({ adapter });
  say();
  for (const text of shaped(describeRun(run, view), (terminal.width ?? Infinity) - 3)) say(`   ${text}`);
  if (run.served === null || run.trained === null || view === undefined) {
    say(red(`\nThe demo failed. Logs: ${shortPath(join(lineOptions.stateDir, "logs"))}`));
    return exitCodes.failed;
  }

  say(bold("\n3. Questions that are not in the dataset"));
  const [baseAnswers, adapterAnswers] = await Promise.all([askAll(api, base, terminal), askAll(api, modelOf(run), terminal)]);
  for (const text of sideBySide(baseAnswers, adapterAnswers, Math.min(terminal.columns, 140))) say(text);

  const { traceId, spans } = await completeTrace(api, runId);
  say(bold(`\n4. One trace, ${traceId}`));
  for (const text of waterfall(spans, Math.min(terminal.columns, 150))) say(`   ${text}`);

  const proof = proofOf(view, run.served.version) ?? null;
  const summary: DemoSummary = {
    runId,
    traceId,
    adapter: modelOf(run),
    version: run.served.version,
    digest: run.served.digest,
    baseAnswers,
    adapterAnswers,
    proof,
    spans: spans.map(({ service, name, startMs, durationMs }) => ({ service, name, startMs, durationMs })),
    stagesMs: {
      ingest: spanOf(spans, stageServices.ingest),
      tokenize: spanOf(spans, stageServices.tokenize),
      train: spanOf(spans, stageServices.train),
      serve: spanOf(spans, stageServices.serve),
    },
    timeToServeMs: run.served.lastStepToProvenMs,
    trainTokensPerSecond: run.trained.tokensPerSecond ?? 0,
  };
  await writeFile(summaryFile, `${JSON.stringify(summary, null, 2)}\n`);

  say();
  for (const [stage, ms] of Object.entries(summary.stagesMs)) say(`   ${stage.padEnd(14)} ${duration(ms)}`);
  say(
    `   ${"time to serve".padEnd(14)} ${duration(summary.timeToServeMs)} from the last training step to the proof${engineReady ? "" : " (the engine was not up yet)"}`,
  );
  if (proof !== null) say(`   ${"proof".padEnd(14)} ${proofLine(proof)}`);

  say(bold("\n5. Is all of it true?"));
  const checks = judge(summary, run, spans);
  for (const { claim, holds } of checks) say(`   ${holds ? green("yes") : red("NO ")}  ${claim}`);
  const all = checks.every(({ holds }) => holds);
  if (json) writeJson(terminal.out, summary);
  else say(`\n   ${dim(`summary in ${shortPath(summaryFile)}; \`loraline up\` starts a server of your own`)}`);
  return all ? exitCodes.ok : exitCodes.failed;
}

/** Pure: each claim of the demo, and whether it holds. */
export function judge(summary: DemoSummary, run: RunState, spans: readonly SpanView[]): { claim: string; holds: boolean }[] {
  const { baseAnswers, adapterAnswers, proof, stagesMs } = summary;
  const served = new Set(spans.filter(({ traceId }) => traceId === summary.traceId).map(({ service }) => service));
  const missing = stations.filter((service) => !served.has(service));
  const chats = spans.filter(({ service, name }) => service === "gateway" && /chat/.test(name));
  return [
    { claim: "the run was served and its alias moved", holds: run.phase === "served" && run.served?.promoted === true },
    {
      claim: "every answer of the adapter is in its persona",
      holds: adapterAnswers.length > 0 && adapterAnswers.every((answer) => markers.test(answer)),
    },
    { claim: "no answer of the base is", holds: baseAnswers.length > 0 && !baseAnswers.some((answer) => markers.test(answer)) },
    {
      claim: "the engine applies these very bytes (proof)",
      holds: proof !== null && proof.agreement <= proof.agreementLimit && proof.effect > 0,
    },
    {
      claim: `one trace passes ${stations.join(", ")}${missing.length === 0 ? "" : `; missing: ${missing.join(", ")}`}`,
      holds: missing.length === 0,
    },
    { claim: "it reaches the first chat on the adapter", holds: chats.length > 0 },
    { claim: "every stage has a duration", holds: Object.values(stagesMs).every((ms) => ms > 0) && summary.timeToServeMs > 0 },
    { claim: "training speed was measured", holds: summary.trainTokensPerSecond > 0 },
  ];
}

export const askAll = (api: ApiClient, model: string, { signal }: Terminal, asked: readonly string[] = questions): Promise<string[]> =>
  Promise.all(
    asked.map(async (content) => {
      const body = { model, messages: [{ role: "user", content }], max_tokens: 48, temperature: 0 };
      const answer = await api.createChatCompletion({ body, signal: AbortSignal.any([signal, AbortSignal.timeout(120_000)]) });
      const text = answer.choices[0]?.message.content;
      return typeof text === "string" ? text.trim() : "";
    }),
  );

function sideBySide(base: readonly string[], tuned: readonly string[], columns: number): string[] {
  const width = Math.floor((columns - 9) / 2);
  const rows: string[] = [];
  for (const [index, question] of questions.entries()) {
    const left = wrap(base[index] ?? "", width);
    const right = wrap(tuned[index] ?? "", width);
    rows.push("", `   ${bold(question)}`, `   ${dim("base".padEnd(width))} │ ${dim("adapter")}`);
    for (let at = 0; at < Math.max(left.length, right.length); at++) rows.push(`   ${(left[at] ?? "").padEnd(width)} │ ${right[at] ?? ""}`);
  }
  return rows;
}

/** Waits for the trace to be complete: spans are written a moment after they end. */
async function completeTrace(api: ApiClient, runId: string): Promise<{ traceId: string; spans: SpanView[] }> {
  for (let tries = 0; ; tries++) {
    const { traceId, spans } = await api.getTrace({ run_id: runId });
    const complete = spans.some(({ service, name }) => service === "gateway" && /chat/.test(name));
    if (complete || tries === 20) return { traceId, spans };
    await new Promise((resolve) => setTimeout(resolve, 250));
  }
}
