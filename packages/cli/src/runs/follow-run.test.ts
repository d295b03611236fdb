import { PassThrough } from "node:stream";
import { ApiError } from "@loraline/client";
import type { RunState } from "@loraline/contracts";
import { expect, it } from "vitest";
import { followRun } from "./follow-run.ts";

type Progress = NonNullable<RunState["progress"]>;
const at = (phase: RunState["phase"], progress?: Partial<Progress>): RunState =>
  ({
    phase,
    spec: { method: { type: "supervised" }, base: "small", lora: { r: 8 } },
    attempt: 1,
    queue: null,
    progress:
      progress === undefined
        ? null
        : { attempt: 1, phase: "train", totalSteps: 4, loss: 2, tokensPerSecond: 100, etaSeconds: 3, ...progress },
  }) as unknown as RunState;

/** Follows what a server would answer, one answer after the other. */
async function follow(answers: (RunState | ApiError)[], signal = new AbortController().signal) {
  const err = new PassThrough();
  let said = "";
  err.on("data", (chunk: Buffer) => (said += chunk.toString()));
  const getRun = async (): Promise<RunState> => {
    const answer = answers.length > 1 ? answers.shift() : answers[0];
    if (answer instanceof ApiError) throw answer;
    return answer as RunState;
  };
  const terminal = { out: err, err, in: new PassThrough(), columns: 80, signal };
  const run = await followRun({ getRun }, "01ARZ3NDEKTSV4RRFFQ69G5FAV", terminal);
  return { run, said: said.trim().split("\n") };
}

it("says each thing once where there is no terminal, and the last step also when it was missed", async () => {
  const { run, said } = await follow([
    at("requested"),
    at("requested"),
    at("running", { phase: "load_base", step: 0 }),
    at("running", { step: 1 }),
    at("running", { step: 2 }),
    at("running", { phase: "save", step: 4, loss: 1.5 }),
    at("served", { phase: "save", step: 4, loss: 1.5 }),
  ]);
  expect(run.phase).toBe("served");
  expect(said).toEqual([
    "reading and tokenizing",
    "loading the base",
    "training: step 1/4 · loss 2.000 · 100 tokens/s · ETA 3.0 s",
    "training: step 4/4 · loss 1.500 · 100 tokens/s",
    "saving the adapter",
    "served",
  ]);
});

it("says how far tokenizing and evaluating are, and how long they take", async () => {
  const { said } = await follow([
    at("requested", {
      attempt: 0,
      phase: "tokenize",
      step: 0,
      totalSteps: 0,
      loss: null,
      tokensPerSecond: null,
      done: 1200,
      total: 482_000,
    }),
    at("running", { phase: "evaluate", step: 0, totalSteps: 0, loss: null, tokensPerSecond: null, done: 7, total: 20, etaSeconds: 61 }),
    at("running", { step: 1 }),
    at("served", { step: 1 }),
  ]);
  expect(said).toEqual([
    "tokenizing: 1,200/482,000 · ETA 3.0 s",
    "evaluating: 7/20 · ETA 1 min 1 s",
    "training: step 1/4 · loss 2.000 · 100 tokens/s · ETA 3.0 s",
    "served",
  ]);
});

it("waits for a server that is away for a moment, and does not wait for one that refuses", async () => {
  const away = new ApiError("UNREACHABLE", "connection refused");
  const { said } = await follow([at("requested"), away, at("failed")]);
  expect(said).toEqual(["reading and tokenizing", "the server does not answer; waiting", "failed"]);
  await expect(follow([new ApiError("not_found", "no such run", { status: 404 })])).rejects.toMatchObject({ status: 404 });
});

it("leaves the run going when it is interrupted", async () => {
  const { run } = await follow([at("running", { step: 1 })], AbortSignal.abort());
  expect(run.phase).toBe("running");
});
