import type { BlobRef } from "@loraline/contracts";
import { expect, it } from "vitest";
import { countDone, defaultIngestSettings, ingestKey } from "./ingest-dataset.ts";

const blob = (digit: string): BlobRef => ({ kind: "raw", digest: `sha256:${digit.repeat(64)}`, size: 1 });

it("the key of a dataset holds its files' names exactly where messages name them", () => {
  const key = (filename: string, parts: [string, string][]): string =>
    ingestKey(
      { blob: blob("0"), filename, parts: parts.map(([digit, name]) => ({ blob: blob(digit), filename: name })), mapping: null },
      defaultIngestSettings,
    );
  expect(key("a", [])).toBe(key("b", []));
  expect(key("a", [["1", "c"]])).not.toBe(key("b", [["1", "c"]]));
  expect(key("a", [["1", "c"]])).not.toBe(key("a", [["1", "d"]]));
});

it("counts a file whose rows are read from a copy of it mostly by its rows, and never backwards", () => {
  const told: number[] = [];
  const { onBytes, onShare } = countDone(1000, (done) => told.push(done));
  onBytes(200);
  onShare(0);
  onBytes(800);
  for (const share of [0.25, 0.5, 1]) onShare(share);
  expect(told).toEqual([200, 200, 200, 325, 550, 1000]);
});

it("counts a file that is read from its beginning to its end by its bytes", () => {
  const told: number[] = [];
  const { onBytes } = countDone(1000, (done) => told.push(done));
  onBytes(200);
  onBytes(800);
  expect(told).toEqual([200, 1000]);
});
