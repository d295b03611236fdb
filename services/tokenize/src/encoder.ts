/** Text to token ids, with the official `tokenizers` package: the same Rust code as Python's. */
import { randomUUID } from "node:crypto";
import { setImmediate as nextTurn } from "node:timers/promises";
import type { Digest } from "@loraline/contracts";
import { digestOf } from "@loraline/objects";
import { PermanentError } from "@loraline/runtime";
import { Tokenizer } from "tokenizers";

/**
 * - `plain`: the spelling of a control token inside the text is text, as for `split_special_tokens=True` in Python.
 * - `raw`: it becomes the control token.
 * - `sealed`: only the spelling that `sealOf` gives becomes the control token, which no text can contain.
 */
export type EncodeMode = "plain" | "raw" | "sealed";

export interface Encoder {
  /** sha256 of tokenizer.json without truncation and padding, which saved adapters carry along and which are no property of a vocabulary. */
  readonly digest: Digest;
  /** Ids of each text, without any added at its ends. */
  encode(texts: readonly string[], mode: EncodeMode): Promise<Int32Array[]>;
  /** What the tokenizer puts before every raw prompt, such as a BOS token; usually nothing. */
  readonly prefix: Int32Array;
  /** Ids are below it. */
  readonly vocabSize: number;
  /** Control tokens by their spelling: those that text must not be able to become. */
  readonly controls: ReadonlyMap<string, number>;
  /** Whether a text between two control tokens has the same ids wherever it stands: nothing is put before it, and no blanks are taken off it. */
  readonly contextFree: boolean;
  /** What stands for a control token in the mode `sealed`. */
  sealOf(control: string): string;
  /** Id of any token that is matched as a whole. */
  addedId(token: string): number | undefined;
  decode(ids: readonly number[]): Promise<string>;
}

interface AddedToken {
  id: number;
  content: string;
  single_word: boolean;
  lstrip: boolean;
  rstrip: boolean;
  normalized: boolean;
  special: boolean;
}
interface TokenizerFile {
  truncation: unknown;
  padding: unknown;
  added_tokens: AddedToken[];
  normalizer: unknown;
  pre_tokenizer: unknown;
  model: { vocab?: Record<string, number> | [string, number][]; unk_token?: string | null };
}

/** Texts handed over at once. Encoding runs on other threads; taking the ids over does not, so the loop breathes in between. */
const batchSize = 512;

/**
 * @param json - content of tokenizer.json.
 * @throws PermanentError TOKENIZER_INVALID
 */
export async function createEncoder(json: string): Promise<Encoder> {
  let file: TokenizerFile;
  let raw: Tokenizer;
  try {
    file = { ...(JSON.parse(json) as TokenizerFile), truncation: null, padding: null };
    raw = Tokenizer.fromString(JSON.stringify(file));
  } catch (error) {
    throw new PermanentError("TOKENIZER_INVALID", `tokenizer.json cannot be loaded: ${(error as Error).message}`, { cause: error });
  }
  const plain = withoutControlTokens(file);
  let sealed: Tokenizer | undefined;
  const nonce = randomUUID();
  const sealOf = (control: string): string => `<${nonce}:${added.get(control)?.id}>`;
  const tokenizers: Record<EncodeMode, () => Tokenizer> = {
    raw: () => raw,
    plain: () => plain,
    sealed: () => (sealed ??= withControlTokensAs(file, sealOf)),
  };
  const controls = file.added_tokens.filter((token) => token.special);
  const added = new Map(file.added_tokens.map((token) => [token.content, token]));
  const prefix = Int32Array.from((await raw.encode("", null, { addSpecialTokens: true })).getIds());

  return {
    digest: digestOf(JSON.stringify(file)),
    prefix,
    vocabSize: raw.getVocabSize(true),
    controls: new Map(controls.map((token) => [token.content, token.id])),
    contextFree: !putsSomethingBefore(file) && !controls.some((token) => token.lstrip || token.rstrip || token.single_word),
    sealOf,
    addedId: (token) => added.get(token)?.id,
    decode: (ids) => raw.decode([...ids], false),
    async encode(texts, mode) {
      const encoded: Int32Array[] = [];
      for (let start = 0; start < texts.length; start += batchSize) {
        const batch = await tokenizers[mode]().encodeBatch(texts.slice(start, start + batchSize), { addSpecialTokens: false });
        for (const one of batch) encoded.push(Int32Array.from(one.getIds()));
        await nextTurn();
      }
      return encoded;
    },
  };
}

/**
 * The same vocabulary, where no text can become a control token (the binding has no `encode_special_tokens`). A token that
 * the model's vocabulary holds is simply no longer looked for. Any other keeps its place in the list, because the ids
 * after it depend on that, but under a name that no text contains.
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

/** The same vocabulary, where control tokens have other spellings. */
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

/** SentencePiece's habit: a blank before the text, or before the first part of it. */
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
