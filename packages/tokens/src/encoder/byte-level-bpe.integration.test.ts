/** Compares the fast encoder with the official package, on real tokenizers: every supported code point, and texts in which encoders differ. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { smollm2Dir } from "@loraline/testkit/servers";
import fc from "fast-check";
import { beforeAll, describe, expect, it } from "vitest";
import { allowedCodePoints, type BpeFile, createByteLevelBpe, isByteLevelBpe } from "./byte-level-bpe.ts";
import { createEncoder, type EncodeMode, type Encoder } from "./encoder.ts";
import { fuzzFactor, qwen3Dir } from "../tokenize-under-test.ts";

type File = BpeFile & { pre_tokenizer: { pretokenizers: { pattern?: unknown }[] }; model: { vocab: Record<string, number> } };
const llama3 =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

const withPattern = (file: File, pattern: string): File => {
  const [, second] = file.pre_tokenizer.pretokenizers;
  const split = { type: "Split", pattern: { Regex: pattern }, behavior: "Isolated", invert: false };
  return {
    ...file,
    normalizer: null,
    pre_tokenizer: { ...file.pre_tokenizer, pretokenizers: [split, second ?? {}] },
    model: { ...file.model, ignore_merges: true },
  };
};

describe.each<[string, string, (file: File) => File]>([
  ["SmolLM2 (GPT-2's pattern, each digit by itself)", smollm2Dir, (file) => file],
  ["Qwen3 (its own pattern, NFC)", qwen3Dir, (file) => file],
  ["Llama 3's pattern, words of the vocabulary whole", qwen3Dir, (file) => withPattern(file, llama3)],
])("%s", (_, dir, change) => {
  let official: Encoder;
  let ours: Encoder;
  let taken: (text: string) => Int32Array | undefined;
  beforeAll(async () => {
    const file = change(JSON.parse(await readFile(join(dir, "tokenizer.json"), "utf8")) as File);
    official = await createEncoder(JSON.stringify(file), { fast: "none" });
    ours = await createEncoder(JSON.stringify(file), { fast: "trusted" });
    taken = createByteLevelBpe(file)?.withAdded([]) ?? (() => undefined);
  });
  const expectEqual = async (texts: string[], mode: EncodeMode): Promise<void> => {
    const [a, b] = [await ours.encode(texts, mode), await official.encode(texts, mode)];
    for (const [index, text] of texts.entries())
      if (a[index]?.join() !== b[index]?.join()) expect([text, [...(a[index] ?? [])]]).toEqual([text, [...(b[index] ?? [])]]);
  };

  it("gives every code point that it takes on the same ids, whatever stands beside it", async () => {
    const texts: string[] = [];
    let text = "";
    for (const code of allowedCodePoints()) {
      const one = String.fromCodePoint(code);
      text += `a${one}b ${one}${one}1${one}  ${one}\n`;
      if (text.length < 400) continue;
      texts.push(text);
      text = "";
    }
    texts.push(text);
    // SmolLM2's vocabulary lacks the bytes of some control characters.
    expect(texts.filter((one) => taken(one) === undefined).length).toBeLessThan(texts.length / 500);
    await expectEqual(texts, "plain");
  });

  it("gives random texts the same ids", async () => {
    const codes = [...allowedCodePoints()];
    const part = fc.oneof(
      {
        weight: 3,
        arbitrary: fc.constantFrom(
          "the",
          "Hello",
          " world",
          "'s",
          "'LL",
          "你好",
          "选择",
          "甄嬛传",
          "こんにちは",
          "カー",
          "한국어",
          "é",
          "e\u0301",
          "️",
          "👩‍👩‍👧",
          "ﬁ",
        ),
      },
      {
        weight: 2,
        arbitrary: fc.constantFrom(
          " ",
          "  ",
          "\n",
          "\r\n",
          "\t",
          "\u00a0",
          "\u3000",
          ".",
          ",",
          "。",
          "(",
          "1",
          "2026",
          "½",
          "_",
          "--",
          "http://",
          "{",
          '"',
        ),
      },
      { weight: 2, arbitrary: fc.integer({ min: 0, max: codes.length - 1 }).map((at) => String.fromCodePoint(codes[at] as number)) },
      { weight: 1, arbitrary: fc.constantFrom("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "<|im", "<repo_name>") },
      { weight: 1, arbitrary: fc.string({ unit: "binary", maxLength: 3 }) },
      { weight: 1, arbitrary: fc.constantFrom("\ud83d", "\udc00", "\u0378", "\ufeff", "\u0085", "\u{1e4d0}") },
    );
    const texts = fc.sample(
      fc.array(part, { maxLength: 40 }).map((parts) => parts.join("")),
      { numRuns: 3000 * fuzzFactor, seed: 20_261_124 },
    );
    await expectEqual(texts, "plain");
    await expectEqual(texts, "raw");
    // Otherwise the official package would be compared with itself.
    expect(texts.filter((one) => taken(one) !== undefined).length).toBeGreaterThan(texts.length / 4);
  });

  it("gives long words the same ids", async () => {
    const letters = fc.sample(
      fc.array(fc.constantFrom("a", "b", "e", "n", "t", "你", "好", "的", "カ"), { minLength: 60, maxLength: 900 }),
      { numRuns: 60, seed: 7 },
    );
    const texts = [
      ...letters.map((one) => one.join("")),
      "a".repeat(20_000),
      "的".repeat(5000),
      "=".repeat(3000),
      " ".repeat(5000),
      "\n".repeat(300),
    ];
    expect(texts.filter((one) => taken(one) === undefined)).toEqual([]);
    await expectEqual(texts, "plain");
  });
});

describe("what is not taken on", () => {
  let file: File;
  beforeAll(async () => {
    file = JSON.parse(await readFile(join(smollm2Dir, "tokenizer.json"), "utf8")) as File;
  });

  it.each<[string, (file: File) => BpeFile]>([
    ["another normalizer", (f) => ({ ...f, normalizer: { type: "NFKC" } })],
    ["another pre-tokenizer", (f) => ({ ...f, pre_tokenizer: { type: "Metaspace", prepend_scheme: "first" } })],
    ["a blank in front", (f) => ({ ...f, pre_tokenizer: { type: "ByteLevel", add_prefix_space: true, use_regex: true } })],
    ["a pattern of its own", (f) => withPattern(f, "\\p{L}+|.")],
    ["byte fallback", (f) => ({ ...f, model: { ...f.model, byte_fallback: true } })],
    ["dropout", (f) => ({ ...f, model: { ...f.model, dropout: 0.1 } })],
    ["an unknown token", (f) => ({ ...f, model: { ...f.model, unk_token: "<unk>" } })],
    ["another model", (f) => ({ ...f, model: { ...f.model, type: "Unigram" } })],
  ])("%s", (_, change) => {
    expect(isByteLevelBpe(file)).toBe(true);
    expect(isByteLevelBpe(change(file))).toBe(false);
    expect(createByteLevelBpe(change(file))).toBeUndefined();
  });

  it("tokens that take blanks with them, and texts of other code points", () => {
    const bpe = createByteLevelBpe(file);
    const token = { id: 1, content: "<x>", single_word: false, lstrip: false, rstrip: false, normalized: false };
    for (const flag of ["single_word", "lstrip", "rstrip", "normalized"])
      expect(bpe?.withAdded([{ ...token, [flag]: true }])).toBeUndefined();
    const encode = bpe?.withAdded([token]);
    expect([...(encode?.("a<x>b") ?? [])]).toContain(1);
    for (const text of ["\0", "\ufeff", "\ud83d", "\u0378", "\u{1e4d0}"]) expect(encode?.(`a${text}`)).toBeUndefined();
  });
});
