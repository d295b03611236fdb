import { datasetManifest, runSpec } from "@loraline/contracts";
import { expect, it } from "vitest";
import type { Base } from "./encoder/load-base.ts";
import { tokenizeKey } from "./tokenize-dataset.ts";

const digest = `sha256:${"0".repeat(64)}` as const;

it("the key of a run's tokens tells bases apart that stop at other tokens, which decides what can be trained", () => {
  const blob = (kind: "raw" | "report") => ({ kind, digest, size: 1 });
  const dataset = datasetManifest.parse({
    version: 1,
    source: blob("raw"),
    records: 0,
    rejections: 0,
    formats: {},
    chunks: [],
    report: blob("report"),
    code: "test",
  });
  const spec = runSpec.parse({ base: "b", adapter: "a", dataset: "01ARZ3NDEKTSV4RRFFQ69G5FAV" });
  const keyOf = (stopIds: number[]): string => {
    const base = {
      ref: { name: "b", revision: "r", digest },
      encoder: { digest },
      templateDigest: digest,
      special: {},
      stopIds: new Set(stopIds),
    } as unknown as Base;
    return tokenizeKey({ tenant: "t", base, spec, dataset, validation: null });
  };
  expect(keyOf([1, 2])).toBe(keyOf([2, 1]));
  expect(keyOf([1, 2])).not.toBe(keyOf([1]));
});
