/**
 * A process is killed with SIGKILL in the middle of a run; if it was the server, `loraline up` is called again. Each time the run
 * completes exactly once, the adapter is proven again before it answers, and no process, lock or port is left.
 */
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { killGroup } from "@loraline/runtime";
import { connect } from "@nats-io/transport-node";
import { afterAll, afterEach, beforeAll, expect, it } from "vitest";
import type { RunState } from "@loraline/contracts";
import {
  base,
  clientOf,
  eventually,
  jsonLines,
  type LineUnderTest,
  processesOf,
  provenOn,
  runOver,
  sampleRows,
  scratchDir,
  smallTraining,
  startLineUnderTest,
} from "../line-under-test.ts";
import { numbersFrom } from "../soak/numbers.ts";

let scratch: Awaited<ReturnType<typeof scratchDir>>;
let stateDir: string;
let line: LineUnderTest;
let adapters = 0;

beforeAll(async () => {
  scratch = await scratchDir();
  stateDir = join(scratch.path, "state");
  line = await startLineUnderTest(stateDir);
});
afterEach(async () => {
  // A server runs after each test, so that a failed test does not fail the next.
  if (!processesOf(stateDir).some(({ pid }) => pid === line.pid)) line = await startLineUnderTest(stateDir);
});
afterAll(async () => {
  await line[Symbol.asyncDispose]();
  expect(processesOf(stateDir), "after an orderly end").toEqual([]);
  expect(await readdir(stateDir)).not.toContain("line.lock");
  await scratch[Symbol.asyncDispose]();
});

const client = () => clientOf(line);

async function startRun(): Promise<{ runId: string; adapter: string }> {
  const { openai } = client();
  const adapter = `survivor-${++adapters}`;
  // New rows each time, so that no result comes from a cache.
  const rows = (await sampleRows(20 + adapters)).slice(adapters);
  const { id } = await openai.files.create({ file: new File([jsonLines(rows)], `${adapter}.jsonl`), purpose: "fine-tune" });
  const body = { model: base, training_file: id, suffix: adapter, loraline: smallTraining };
  const job = await openai.fineTuning.jobs.create(body);
  return { runId: job.id.replace("ftjob-", ""), adapter };
}

const reaches = (runId: string, what: string, holds: (run: RunState) => boolean): Promise<RunState> =>
  eventually(`run ${runId}: ${what}`, 240_000, async () => {
    const run = await client().getRun({ run_id: runId });
    if (run.error !== null) throw new Error(run.error.message);
    return holds(run) ? run : undefined;
  });

async function killLineAndStartAgain(): Promise<void> {
  await line.sigkill();
  await eventually("its children are gone with it", 120_000, () => (processesOf(stateDir).length === 0 ? true : undefined));
  line = await startLineUnderTest(stateDir);
}

/** Checks the promise: served once, as version 1, proven by the engine that answers now; and it answers. */
async function expectServedOnce({ runId, adapter }: { runId: string; adapter: string }): Promise<RunState> {
  const run = await runOver(client(), runId);
  expect(run.error).toBeNull();
  expect(run.phase).toBe("served");
  expect(await eventsOf(runId)).toMatchObject({ "trained.v1": 1, "served.v1": 1, "requested.v1": 1 });
  const view = await client().getAdapter({ adapter });
  expect(view.adapter.versions.map(({ version, status }) => [version, status])).toEqual([[1, "desired"]]);
  expect(view.adapter.alias).toBe(1);
  await expectAnswer(adapter);
  expect(provenOn(await client().getAdapter({ adapter }), 1)).toHaveLength(1);
  return run;
}

/** Waits for an answer, which comes as soon as the adapter is proven, perhaps after the engine's restart. */
async function expectAnswer(adapter: string): Promise<void> {
  const said = await eventually(`${adapter} answers`, 180_000, async () => {
    const messages = [{ role: "user" as const, content: "Who are you?" }];
    const answer = await client().openai.chat.completions.create(
      { model: `local/${adapter}`, messages, max_tokens: 6 },
      { maxRetries: 0, timeout: 60_000 },
    );
    return answer.choices[0]?.message.content ?? undefined;
  });
  expect(said).not.toBe("");
}

/** @returns how often each event of a run is in the stream, read from the stream by subject. */
async function eventsOf(runId: string): Promise<Record<string, number>> {
  const nc = await connect({ servers: line.natsUrl, user: "local", pass: line.natsAuth["local"] ?? "" });
  try {
    const asked = await nc.request("$JS.API.STREAM.INFO.RUNS", JSON.stringify({ subjects_filter: `loraline.local.run.${runId}.>` }));
    const { state } = asked.json<{ state: { subjects?: Record<string, number> } }>();
    return Object.fromEntries(
      Object.entries(state.subjects ?? {}).map(([subject, count]) => [subject.split(".").slice(4).join("."), count]),
    );
  } finally {
    await nc.close();
  }
}

/** @returns a child's process id, as the server recorded it. */
const childPid = async (name: "nats" | "engine"): Promise<number> =>
  (JSON.parse(await readFile(join(stateDir, "children", `${name}.json`), "utf8")) as { pid: number }).pid;

const incarnationOf = async (adapter: string): Promise<string | undefined> =>
  provenOn(await client().getAdapter({ adapter }), 1)[0]?.incarnation;

it("the line, before the dataset is read", async () => {
  const run = await startRun();
  await killLineAndStartAgain();
  expect((await expectServedOnce(run)).attempt).toBe(1);
});

it("the line, while it trains: the run goes on from a checkpoint", async () => {
  const run = await startRun();
  await reaches(run.runId, "has a checkpoint", ({ checkpoints }) => checkpoints.length > 0);
  await killLineAndStartAgain();
  const { attempt, lostAttempts } = await expectServedOnce(run);
  expect(attempt).toBe(lostAttempts + 1);
});

it("the line, when the adapter is trained but not yet served", async () => {
  const run = await startRun();
  await reaches(run.runId, "is trained", ({ phase }) => phase === "trained" || phase === "served");
  await killLineAndStartAgain();
  expect((await expectServedOnce(run)).attempt, "it is not trained again").toBe(1);
});

it.each(["self_test", "train", "evaluate"])("the trainer, in its phase %s", async (phase) => {
  const run = await startRun();
  await reaches(run.runId, `trainer is in ${phase}`, ({ progress }) => progress?.attempt === 1 && progress.phase === phase);
  const [job] = (await readdir(join(stateDir, "train"))).filter((name) => name.includes(run.runId.toLowerCase()));
  const { pid } = JSON.parse(await readFile(join(stateDir, "train", job ?? "", "trainer.json"), "utf8")) as { pid: number };
  process.kill(pid, "SIGKILL");
  const served = await expectServedOnce(run);
  expect(served).toMatchObject({ attempt: 2, lostAttempts: 1 });
});

it("nats-server, while it trains", async () => {
  const run = await startRun();
  await reaches(run.runId, "trains", ({ progress }) => progress?.phase === "train");
  process.kill(await childPid("nats"), "SIGKILL");
  await eventually("it is started again", 120_000, () =>
    line.news.find((news) => news.kind === "child-ended" && news.name === "nats-server"),
  );
  const { attempt } = await expectServedOnce(run);
  expect(attempt, "training went on meanwhile").toBe(1);
});

it("vLLM, after the adapter was served: it is proven on the new one before it answers", async () => {
  const run = await startRun();
  await expectServedOnce(run);
  const before = await incarnationOf(run.adapter);
  killGroup(await childPid("engine"));
  await eventually("nothing counts as proven any more", 120_000, async () =>
    (await incarnationOf(run.adapter)) === before ? undefined : true,
  );
  await expectAnswer(run.adapter);
  expect(await incarnationOf(run.adapter)).not.toBe(before);
  await expectServedOnce(run);
});

it("anything, at random moments", async () => {
  const seed = Number(process.env.LORALINE_SEED ?? Date.now() % 100_000);
  console.log(`LORALINE_SEED=${seed}`);
  const random = numbersFrom(seed);
  const run = await startRun();
  const killed: string[] = [];
  for (let kills = 0; kills < 4; kills++) {
    await new Promise((resolve) => setTimeout(resolve, 500 + random() * 12_000));
    const victims = ["line", "nats", "engine", "courier", "trainer"] as const;
    const victim = victims[Math.floor(random() * victims.length)] ?? "line";
    killed.push(victim);
    if (victim === "line") await killLineAndStartAgain();
    else if (victim === "nats" || victim === "engine") killGroup(await childPid(victim));
    else for (const pid of await attemptPids(victim)) killGroup(pid);
  }
  const { attempt, lostAttempts } = await expectServedOnce(run);
  expect(attempt, `killed: ${killed.join(", ")}`).toBe(lostAttempts + 1);
});

/** @returns the processes of attempts that run now, without those that have just ended or not yet started. */
async function attemptPids(which: "courier" | "trainer"): Promise<number[]> {
  const file = which === "courier" ? "process.json" : "trainer.json";
  const alive = new Set(processesOf(stateDir).map(({ pid }) => pid));
  const jobs = await readdir(join(stateDir, "train")).catch(() => []);
  const pids = await Promise.all(
    jobs.map(async (job) => {
      const text = await readFile(join(stateDir, "train", job, file), "utf8").catch(() => '{"pid":0}');
      return (JSON.parse(text) as { pid: number }).pid;
    }),
  );
  return pids.filter((pid) => alive.has(pid));
}
