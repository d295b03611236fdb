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
 */
export type EncodeMode = "plain" | "raw";

export interface Encoder {
  /** sha256 of tokenizer.json without truncation and padding, which saved adapters carry along and which are no property of a vocabulary. */
  readonly digest: Digest;
  /** Ids of each text, without any added at its ends. */
  encode(texts: readonly string[], mode: EncodeMode): Promise<Int32Array[]>;
  /** What the tokenizer puts before every raw prompt, such as a BOS token; usually nothing. */
  readonly prefix: Int32Array;
  /** Id of a token that is matched as a whole and takes no blanks with it; undefined when there is none. */
  controlId(token: string): number | undefined;
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
  model: { vocab?: Record<string, number> | unknown[] };
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
  const tokenizers: Record<EncodeMode, Tokenizer> = { raw, plain: withoutControlTokens(file) };
  const added = new Map(file.added_tokens.map((token) => [token.content, token]));
  const prefix = Int32Array.from((await raw.encode("", null, { addSpecialTokens: true })).getIds());

  return {
    digest: digestOf(JSON.stringify(file)),
    prefix,
    controlId(token) {
      const found = added.get(token);
      return found === undefined || found.lstrip || found.rstrip || found.single_word || found.normalized ? undefined : found.id;
    },
    addedId: (token) => added.get(token)?.id,
    decode: (ids) => raw.decode([...ids], false),
    async encode(texts, mode) {
      const encoded: Int32Array[] = [];
      for (let start = 0; start < texts.length; start += batchSize) {
        const batch = await tokenizers[mode].encodeBatch(texts.slice(start, start + batchSize), { addSpecialTokens: false });
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
