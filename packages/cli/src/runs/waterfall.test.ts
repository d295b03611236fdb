import type { SpanView } from "@loraline/contracts";
import { stripVTControlCharacters } from "node:util";
import { expect, it } from "vitest";
import { spanOf, waterfall } from "./waterfall.ts";

const span = (
  service: string,
  name: string,
  spanId: string,
  parentSpanId: string | null,
  startMs: number,
  durationMs: number,
): SpanView => ({
  traceId: "t",
  spanId,
  parentSpanId,
  service,
  name,
  startMs,
  durationMs,
  status: "ok",
  attributes: {},
  links: [],
});

const spans = [
  span("gateway", "POST /v1/files", "a", null, 1000, 100),
  span("train", "launch", "d", "c", 1600, 400),
  span("ingest", "process dataset.received.v1", "b", "a", 1100, 300),
  span("train", "attempt", "c", "gone", 1500, 500),
];

it("draws parents before children, each where its time was", () => {
  const lines = waterfall(spans, 90).map((line) => stripVTControlCharacters(line));
  expect(lines.map((line) => line.replace(/█+.*/, "").trimEnd())).toEqual([
    "gateway  POST /v1/files",
    "ingest     process dataset.received.v1",
    "train    attempt",
    "train      launch",
  ]);
  const bars = lines.map((line) => [line.indexOf("█"), line.lastIndexOf("█")]);
  for (const [from, to] of bars) expect(from).toBeLessThanOrEqual(to as number);
  expect(bars[1]?.[0]).toBeGreaterThan(bars[0]?.[0] as number);
  expect(bars[3]?.[1], "both end at the same time").toBe(bars[2]?.[1]);
  expect(
    lines.map((line) =>
      line
        .trim()
        .split(/\s{2,}|█ +/)
        .at(-1),
    ),
  ).toEqual(["100 ms", "300 ms", "500 ms", "400 ms"]);
  for (const line of lines) expect(line.length).toBeLessThanOrEqual(90);
});

it("measures a stage from its first start to its last end", () => {
  expect(spanOf(spans, ["train"])).toBe(500);
  expect(spanOf(spans, ["serve"])).toBe(0);
});
