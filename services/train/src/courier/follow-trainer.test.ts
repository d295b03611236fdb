import { appendFileSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createLog, type Exit } from "@loraline/runtime";
import { afterEach, beforeEach, expect, it } from "vitest";
import { type FollowedTrainer, followTrainer, type FollowTrainerOptions } from "./follow-trainer.ts";

const log = createLog({ service: "test", level: "silent" });
const within = { timeout: 60_000 };
let work: string;
beforeEach(() => {
  work = mkdtempSync(join(tmpdir(), "loraline-trainer-"));
});
afterEach(() => rmSync(work, { recursive: true, force: true }));

/** Follows a trainer that is nothing but the files this test writes, and a promise of its end. */
function follow(more: Partial<FollowTrainerOptions> = {}) {
  const exited = Promise.withResolvers<Exit>();
  const lines: string[] = [];
  const kills: string[] = [];
  const trainer = {
    exited: exited.promise,
    kill(signal: NodeJS.Signals) {
      kills.push(signal);
      exited.resolve({ code: null, signal });
    },
  };
  const followed: Promise<FollowedTrainer> = followTrainer({
    work,
    trainer,
    onLine: (line) => lines.push(line),
    where: () => "phase train, step 3 of 9",
    hangMs: 600_000,
    log,
    ...more,
  });
  return { followed, lines, kills, exit: (code: number) => exited.resolve({ code, signal: null }) };
}
const progress = (text: string): void => appendFileSync(join(work, "progress.jsonl"), text);
const result = (status: string): void =>
  writeFileSync(
    join(work, "result.json"),
    JSON.stringify({
      status,
      error: null,
      steps: 3,
      total_steps: 9,
      train_loss: 1,
      tokens_seen: 1,
      train_tokens_per_second: 1,
      loss_history: [],
      probes: [],
      adapter: null,
      phases: {},
      evaluation: null,
    }),
  );

it("gives lines as they are completed, and all that were written before the end", async () => {
  const { followed, lines, exit } = follow();
  progress("one\ntw");
  await expect.poll(() => lines, within).toEqual(["one"]);
  progress("o\nthree\n");
  exit(1);
  expect(await followed).toEqual({ exit: { code: 1, signal: null }, result: undefined, hangs: undefined });
  expect(lines).toEqual(["one", "two", "three"]);
});

it("is content with the result of one that succeeded, and does not wait for its end", async () => {
  const { followed } = follow();
  progress("one\n");
  result("succeeded");
  expect(await followed).toMatchObject({ exit: undefined, result: { status: "succeeded" }, hangs: undefined });
});

it("waits for the end of one that was stopped, though the result is there", async () => {
  const { followed, lines, exit } = follow();
  result("preempted");
  progress("one\n");
  await expect.poll(() => lines, within).toEqual(["one"]);
  exit(75);
  expect(await followed).toMatchObject({ exit: { code: 75 }, result: { status: "preempted" } });
});

it("kills one that gives no sign of life, and says where it was", async () => {
  const { followed, kills } = follow({ hangMs: 300 });
  progress("one\n");
  expect(await followed).toMatchObject({
    exit: { signal: "SIGKILL" },
    hangs: "the trainer gave no sign of life for 0 s (phase train, step 3 of 9) and was ended",
  });
  expect(kills).toEqual(["SIGKILL"]);
});

it("takes none for hanging that waits for other nodes, and tells when they have met", async () => {
  let met = 0;
  const { followed, kills, exit } = follow({ hangMs: 300, onNodesMet: () => met++ });
  await new Promise((resolve) => setTimeout(resolve, 600));
  expect([met, kills]).toEqual([0, []]);
  progress("one\n");
  await expect.poll(() => met, within).toBe(1);
  exit(0);
  await followed;
  expect(met).toBe(1);
});
