import type { BlobRef } from "@loraline/contracts";
import { expect, it } from "vitest";
import { defaultIngestSettings, ingestKey } from "./ingest-dataset.ts";

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
