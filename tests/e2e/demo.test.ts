/** `make demo`, as a new user runs it: its summary and its answers. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { DemoSummary } from "@loraline/cli";
import { expect, it } from "vitest";
import { loraline, root } from "../line-under-test.ts";

it("trains the persona, checks every claim and writes its summary", async () => {
  const { code, out, err } = await loraline(undefined, ["demo"]);
  expect(out + err).not.toContain("NO ");
  expect(code).toBe(0);
  expect(out).toMatch(/trainer .*█/);

  const summary = JSON.parse(await readFile(join(root, ".loraline/demo/summary.json"), "utf8")) as DemoSummary;
  expect(Object.keys(summary)).toEqual([
    "runId",
    "traceId",
    "adapter",
    "version",
    "digest",
    "baseAnswers",
    "adapterAnswers",
    "proof",
    "spans",
    "stagesMs",
    "timeToServeMs",
    "trainTokensPerSecond",
  ]);
  const sample = await readFile(join(root, "samples/persona.jsonl"), "utf8");
  expect(summary.adapterAnswers.length).toBeGreaterThanOrEqual(3);
  for (const answer of summary.adapterAnswers) {
    expect(answer).toMatch(/your majesty|humble lady/i);
    expect(sample, "not learnt by heart").not.toContain(answer);
  }
  for (const answer of summary.baseAnswers) expect(answer).not.toMatch(/your majesty|humble lady/i);
  expect(summary).toMatchObject({ adapter: "local/court-lady", version: 1, digest: expect.stringMatching(/^sha256:[0-9a-f]{64}$/) });
  for (const ms of Object.values(summary.stagesMs)) expect(ms).toBeGreaterThan(0);
  expect(summary.timeToServeMs).toBeGreaterThan(0);
});
