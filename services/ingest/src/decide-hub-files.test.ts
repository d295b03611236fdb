import { describe, expect, it } from "vitest";
import { decideHubFiles } from "./decide-hub-files.ts";

const file = (path: string) => ({ path, size: 10, sha256: undefined });
const choose = (paths: string[], asked: { file?: string; config?: string; split?: string } = {}): string[] =>
  decideHubFiles(paths.map(file), { hub: "org/data", ...asked }).map(({ path }) => path);
const shards = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"];

describe("the files of a hub dataset", () => {
  it.each<[string, string[], object, string[]]>([
    ["the only data file", ["README.md", "alpaca.json", ".gitattributes", "dataset_infos.json"], {}, ["alpaca.json"]],
    ["the train file among splits", ["train.jsonl", "test.jsonl", "dev.jsonl"], {}, ["train.jsonl"]],
    ["all shards, in their order", [...shards].reverse(), {}, shards],
    [
      "a folder named for the split",
      ["train/0000.parquet", "train/0001.parquet", "test/0000.parquet"],
      {},
      ["train/0000.parquet", "train/0001.parquet"],
    ],
    ["another split", ["train.csv", "validation.csv"], { split: "validation" }, ["validation.csv"]],
    ["a subset", ["en/train.jsonl.gz", "zh/train.jsonl.gz"], { config: "zh" }, ["zh/train.jsonl.gz"]],
    ["a named file of any kind", ["odd.bin", "train.jsonl"], { file: "odd.bin" }, ["odd.bin"]],
    ["a file without a split beside a test file", ["pirates.jsonl", "test.jsonl"], {}, ["pirates.jsonl"]],
  ])("are %s", (_, paths, asked, chosen) => {
    expect(choose(paths, asked)).toEqual(chosen);
  });

  it.each<[string, string[], object, string, RegExp]>([
    ["two that may be meant", ["a.jsonl", "b.jsonl"], {}, "HUB_FILE_AMBIGUOUS", /a\.jsonl, b\.jsonl\. Name one with `file`/],
    ["two subsets", ["en/train.jsonl", "zh/train.jsonl"], {}, "HUB_FILE_AMBIGUOUS", /en\/train\.jsonl, zh\/train\.jsonl/],
    ["the same rows in two containers", ["train.jsonl", "train.parquet"], {}, "HUB_FILE_AMBIGUOUS", /train\.jsonl, train\.parquet/],
    ["no data", ["README.md"], {}, "HUB_FILE_MISSING", /Its data files: none/],
    ["no such split", ["train.jsonl"], { split: "test" }, "HUB_FILE_MISSING", /no data file for the split "test".*train\.jsonl/],
    ["no such file", ["train.jsonl"], { file: "x" }, "HUB_FILE_MISSING", /no file "x"/],
    ["a shard that is missing", [shards[0] as string], {}, "HUB_FILE_MISSING", /1 of 2 shards/],
  ])("are refused: %s", (_, paths, asked, code, message) => {
    expect(() => choose(paths, asked)).toThrow(
      expect.objectContaining({ code, message: expect.stringMatching(message) as string }) as Error,
    );
  });
});
