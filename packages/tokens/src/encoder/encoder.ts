/**
 * Encodes text to the token ids of the official `tokenizers` package, which is the same Rust code as Python's. For tokenizers and texts
 * with proven equality `byte-level-bpe.ts` does it faster; the official package checks samples of that, and encodes everything else.
 */
import { randomUUID } from "node:crypto";
import { setImmediate as nextTurn } from "node:timers/promises";
import type { Digest } from "@loraline/contracts";
import { digestOf } from "@loraline/objects/digest";
import { PermanentError } from "@loraline/runtime/errors";
import { Tokenizer } from "tokenizers";
import { type AddedToken, type BpeFile, createByteLevelBpe, isByteLevelBpe } from "./byte-level-bpe.ts";

/**
 * - `plain`: the spelling of a control token inside the text is text, as for `split_special_tokens=True` in Python.
 * - `raw`: it becomes the control token.
 * - `sealed`: only the spelling that `sealOf` gives becomes the control token, which no text can contain.
 */
export type EncodeMode = "plain" | "raw" | "sealed";

export interface Encoder {
  /** sha256 of tokenizer.json without truncation and padding. Saved adapters carry these settings, but they do not belong to the vocabulary. */
  readonly digest: Digest;
  /** Ids of each text, without any added at its ends. */
  encode(texts: readonly string[], mode: EncodeMode): Promise<Int32Array[]>;
  /** Ids that the tokenizer puts before every raw prompt, such as a BOS token; usually none. */
  readonly prefix: Int32Array;
  /** Size of the vocabulary: all ids are below it. */
  readonly vocabSize: number;
  /** Control tokens by their spelling. Text from users must never become one. */
  readonly controls: ReadonlyMap<string, number>;
  /** Whether a text between two control tokens has the same ids at every place: the tokenizer adds no prefix and removes no blanks. */
  readonly contextFree: boolean;
  /** @returns the spelling of a control token in the mode `sealed`. */
  sealOf(control: string): string;
  /** @returns the id of a token that is matched as a whole. */
  addedId(token: string): number | undefined;
  decode(ids: readonly number[]): Promise<string>;
}

interface TokenizerFile extends BpeFile {
  truncation: unknown;
  padding: unknown;
  added_tokens: (AddedToken & { special: boolean })[];
  normalizer: unknown;
  pre_tokenizer: unknown;
  post_processor: { type?: string } | null;
  model: { vocab?: Record<string, number> | [string, number][]; unk_token?: string | null } & Record<string, unknown>;
}

export interface EncoderOptions {
  /**
   * - `judged` (default): the official package checks `byte-level-bpe.ts` before its first text and on samples afterwards. After the
   *   first difference the official package encodes everything.
   * - `trusted`: for further threads of a process in which another thread checks; they need not load the official package.
   * - `none`: the official package encodes everything.
   */
  fast?: "judged" | "trusted" | "none";
}

/** The fast encoder was found wrong. A retry succeeds, because the fast encoder is switched off from then on. */
export class EncodersDiffer extends Error {}

/** Texts that are encoded at once. Encoding runs on other threads, but copying the ids does not, so the event loop gets a turn in between. */
const batchSize = 512;
/** The fast encoder runs on this thread. After so many characters (a few milliseconds) the event loop gets a turn. */
const breathCharacters = 128 * 1024;
/** One of so many texts is also encoded by the official package, as a check. */
const judgedEvery = 512;

/**
 * @param json - content of tokenizer.json.
 * @throws PermanentError TOKENIZER_INVALID
 */
export async function createEncoder(json: string, { fast: mode = "judged" }: EncoderOptions = {}): Promise<Encoder> {
  const nonce = randomUUID();
  const sealOf = (control: string): string => `<${nonce}:${added.get(control)?.id}>`;
  let file: TokenizerFile;
  try {
    file = { ...(JSON.parse(json) as TokenizerFile), truncation: null, padding: null };
  } catch (error) {
    throw invalid(error);
  }
  const text = JSON.stringify(file);
  // Loaded when first needed: each takes half a second and a hundred megabytes with a large vocabulary.
  const load: Record<EncodeMode, () => Tokenizer> = {
    raw: () => Tokenizer.fromString(text),
    plain: () => withoutControlTokens(file),
    sealed: () => withControlTokensAs(file, sealOf),
  };
  const loaded: Partial<Record<EncodeMode, Tokenizer>> = {};
  const official = (which: EncodeMode): Tokenizer => {
    try {
      return (loaded[which] ??= load[which]());
    } catch (error) {
      throw invalid(error);
    }
  };
  const isTakenOn = mode !== "none" && isByteLevelBpe(file);
  // The official package is loaded at once, which checks the tokenizer's file. A file that the fast encoder supports needs no such check.
  if (!isTakenOn) official("raw");
  let fastIsOff = !isTakenOn;
  let bpe: ReturnType<typeof createByteLevelBpe>;
  const fastOf: Partial<Record<EncodeMode, (text: string) => Int32Array | undefined>> = {};
  const fast = (which: EncodeMode): ((text: string) => Int32Array | undefined) | undefined => {
    if (fastIsOff || which === "sealed") return undefined;
    bpe ??= createByteLevelBpe(file);
    const found =
      fastOf[which] ?? bpe?.withAdded(which === "raw" ? file.added_tokens : file.added_tokens.filter((token) => !token.special));
    if (found === undefined) fastIsOff = true;
    else fastOf[which] = found;
    return found;
  };
  const controls = file.added_tokens.filter((token) => token.special);
  const added = new Map(file.added_tokens.map((token) => [token.content, token]));
  const putsNothingBefore = isTakenOn && (file.post_processor === null || file.post_processor.type === "ByteLevel");
  const prefix = putsNothingBefore
    ? new Int32Array(0)
    : Int32Array.from((await official("raw").encode("", null, { addSpecialTokens: true })).getIds());

  const encodeOfficially = async (texts: readonly string[], which: EncodeMode): Promise<Int32Array[]> => {
    const encoded: Int32Array[] = [];
    for (let start = 0; start < texts.length; start += batchSize) {
      const batch = await official(which).encodeBatch(texts.slice(start, start + batchSize), { addSpecialTokens: false });
      for (const one of batch) encoded.push(Int32Array.from(one.getIds()));
      await nextTurn();
    }
    return encoded;
  };
  /** Switches the fast encoder off with the first difference. */
  const judge = async (texts: readonly string[], which: EncodeMode): Promise<string | undefined> => {
    const theirs = await encodeOfficially(texts, which);
    const wrong = texts.find((one, index) => {
      const ours = fast(which)?.(one);
      return ours !== undefined && ours.join() !== theirs[index]?.join();
    });
    if (wrong !== undefined) fastIsOff = true;
    return wrong;
  };
  const trials: Partial<Record<EncodeMode, Promise<unknown>>> = {};
  let sinceJudged = 0;

  return {
    digest: digestOf(text),
    prefix,
    get vocabSize() {
      return official("raw").getVocabSize(true);
    },
    controls: new Map(controls.map((token) => [token.content, token.id])),
    contextFree: !putsSomethingBefore(file) && !controls.some((token) => token.lstrip || token.rstrip || token.single_word),
    sealOf,
    addedId: (token) => added.get(token)?.id,
    decode: (ids) => official("raw").decode([...ids], false),
    async encode(texts, which) {
      if (mode === "judged" && fast(which) !== undefined) await (trials[which] ??= judge(trialTexts(), which));
      const quick = fast(which);
      if (quick === undefined) return encodeOfficially(texts, which);
      const encoded: (Int32Array | undefined)[] = [];
      const left: number[] = [];
      const samples: string[] = [];
      let characters = 0;
      for (const [index, one] of texts.entries()) {
        const ids = quick(one);
        encoded.push(ids);
        if (ids === undefined) left.push(index);
        else if (mode === "judged" && sinceJudged++ % judgedEvery === 0) samples.push(one);
        characters += one.length;
        if (characters < breathCharacters) continue;
        characters = 0;
        await nextTurn();
      }
      const wrong = samples.length === 0 ? undefined : await judge(samples, which);
      if (wrong !== undefined) {
        throw new EncodersDiffer(
          `the fast encoder and the official package give ${JSON.stringify(wrong.slice(0, 200))} different ids. It is off from now on: try again (loraline tokenize --exact).`,
        );
      }
      const rest =
        left.length === 0
          ? []
          : await encodeOfficially(
              left.map((index) => texts[index] as string),
              which,
            );
      for (const [at, index] of left.entries()) encoded[index] = rest[at];
      return encoded as Int32Array[];
    },
  };
}

const invalid = (cause: unknown): PermanentError =>
  new PermanentError("TOKENIZER_INVALID", `tokenizer.json cannot be loaded: ${(cause as Error).message}`, { cause });

/** Texts in which encoders differ, in all combinations. */
function trialTexts(): string[] {
  const parts = [
    "a",
    "The",
    " end",
    "'s",
    "'LL",
    "1",
    "2026",
    " 7",
    "½",
    "Ⅻ",
    ".",
    "...",
    " (",
    "\n",
    "\r\n",
    "\n\n  ",
    " ",
    "   ",
    "\t",
    "\u00a0",
    "\u3000",
    "é",
    "e\u0301",
    "ß",
    "Ж",
    "αβ",
    "你",
    "选择",
    "甄嬛",
    ",",
    "。",
    "”",
    "こん",
    "カー",
    "한국",
    "한",
    "ข",
    "م",
    "🙂",
    "👩‍👩‍👧",
    "️",
    "𠮷",
    "_",
    "-",
    "<|im_end|>",
    "<think>",
    "</s>",
    '{"a": 1}',
    "http://x.y/z?q=1",
    "\u200b",
    "ﬁ",
    "豈",
  ];
  return parts.map((left) => parts.map((right) => left + right).join("") + left.repeat(70));
}

/**
 * Makes the same vocabulary without control tokens in texts (the binding has no `encode_special_tokens`). A token that the model's
 * vocabulary contains is removed from the list. Any other keeps its place in the list, because later ids depend on it, but gets a
 * name that no text contains.
 */
function withoutControlTokens(file: TokenizerFile): Tokenizer {
  const { vocab } = file.model;
  const inVocabulary = (token: string): boolean => typeof vocab === "object" && !Array.isArray(vocab) && Object.hasOwn(vocab, token);
  const nowhere = randomUUID();
  const tokens = file.added_tokens.flatMap((token) => {
    if (!token.special) return [token];
    return inVocabulary(token.content) ? [] : [{ ...token, content: `${nowhere}-${token.id}` }];
  });
  return Tokenizer.fromString(JSON.stringify({ ...file, added_tokens: tokens, post_processor: null }));
}

/** Makes the same vocabulary with other spellings of the control tokens. */
function withControlTokensAs(file: TokenizerFile, spell: (control: string) => string): Tokenizer {
  const renamed = new Map(file.added_tokens.flatMap((token) => (token.special ? [[token.content, spell(token.content)]] : [])));
  const { model } = file;
  const { vocab } = model;
  return Tokenizer.fromString(
    JSON.stringify({
      ...file,
      added_tokens: file.added_tokens.map((token) => ({ ...token, content: renamed.get(token.content) ?? token.content })),
      model: {
        ...model,
        ...(typeof model.unk_token === "string" && { unk_token: renamed.get(model.unk_token) ?? model.unk_token }),
        ...(Array.isArray(vocab)
          ? { vocab: vocab.map(([token, score]) => [renamed.get(token) ?? token, score]) }
          : vocab !== undefined && {
              vocab: Object.fromEntries(Object.entries(vocab).map(([token, id]) => [renamed.get(token) ?? token, id])),
            }),
      },
      post_processor: null,
    }),
  );
}

/** Whether the tokenizer adds a blank before the text, or before its first part, as SentencePiece does. */
function putsSomethingBefore({ normalizer, pre_tokenizer }: TokenizerFile): boolean {
  const steps = (step: unknown): { type?: string; prepend_scheme?: string; add_prefix_space?: boolean }[] => {
    if (typeof step !== "object" || step === null) return [];
    const { normalizers = [], pretokenizers = [] } = step as { normalizers?: unknown[]; pretokenizers?: unknown[] };
    return [step, ...[...normalizers, ...pretokenizers].flatMap(steps)];
  };
  return [...steps(normalizer), ...steps(pre_tokenizer)].some(
    (step) =>
      step.type === "Prepend" ||
      step.type === "Strip" ||
      (step.type === "Metaspace" && step.prepend_scheme !== "never") ||
      (step.type === "ByteLevel" && step.add_prefix_space === true),
  );
}
