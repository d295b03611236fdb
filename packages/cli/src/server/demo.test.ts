import type { RunState, SpanView } from "@loraline/contracts";
import { expect, it } from "vitest";
import { type DemoSummary, judge } from "./demo.ts";

const proof = {
  probes: 3,
  tokens: 33,
  agreement: 0.1,
  agreementLimit: 0.3,
  effect: 3,
  effectExpected: 3,
  provenAt: "2026-11-24T00:00:00.000Z",
};
const summary: DemoSummary = {
  runId: "r",
  traceId: "t",
  adapter: "local/court-lady",
  version: 1,
  digest: "sha256:0",
  baseAnswers: ["Rain is water that falls from clouds."],
  adapterAnswers: ["Your Majesty, rain is the sky's tea.", "This humble lady would wait."],
  proof,
  spans: [],
  stagesMs: { ingest: 20, tokenize: 300, train: 60_000, serve: 900 },
  timeToServeMs: 3000,
  trainTokensPerSecond: 200,
};
const run = { phase: "served", served: { promoted: true } } as RunState;
const spans = ["gateway", "ingest", "tokenize", "train", "courier", "trainer", "serve", "agent"].map(
  (service) => ({ traceId: "t", service, name: service === "gateway" ? "POST /v1/chat/completions" : "x" }) as SpanView,
);
const failing = (change: Partial<DemoSummary>, otherRun = run, otherSpans = spans) =>
  judge({ ...summary, ...change }, otherRun, otherSpans)
    .filter(({ holds }) => !holds)
    .map(({ claim }) => claim);

it("believes a demo of which everything is true", () => {
  expect(failing({})).toEqual([]);
});

it.each<[string, Partial<DemoSummary>, RegExp]>([
  ["an answer out of character", { adapterAnswers: ["Your Majesty!", "Rain is water."] }, /every answer of the adapter/],
  ["no answers at all", { adapterAnswers: [] }, /every answer of the adapter/],
  ["a base that says it, too", { baseAnswers: ["Yes, Your Majesty."] }, /no answer of the base/],
  ["no proof", { proof: null }, /proof/],
  ["a proof outside its limit", { proof: { ...proof, agreement: 0.31 } }, /proof/],
  ["a proof without effect", { proof: { ...proof, effect: 0 } }, /proof/],
  ["a stage without a duration", { stagesMs: { ...summary.stagesMs, serve: 0 } }, /every stage/],
  ["another trace", { traceId: "other" }, /missing: gateway/],
])("does not believe one with %s", (_, change, claim) => {
  expect(failing(change)).toEqual([expect.stringMatching(claim)]);
});

it("does not believe a trace that stops short, or an alias that did not move", () => {
  const withoutAgent = spans.filter(({ service }) => service !== "agent");
  expect(failing({}, run, withoutAgent)).toEqual([expect.stringMatching(/missing: agent/)]);
  const withoutChat = spans.map((span) => ({ ...span, name: "x" }));
  expect(failing({}, run, withoutChat)).toEqual([expect.stringMatching(/first chat/)]);
  expect(failing({}, { ...run, served: { promoted: false } } as RunState)).toEqual([expect.stringMatching(/alias moved/)]);
});
