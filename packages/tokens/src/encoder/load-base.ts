/** Loads the parts of a base that tokenizing needs: tokenizer, chat template, names of special tokens. */
import { readFile } from "node:fs/promises";
import { basename, join, resolve } from "node:path";
import { type BaseRef, baseRef, type Digest } from "@loraline/contracts";
import { baseVersion, readBaseRef } from "@loraline/models/base-ref";
import { digestOf } from "@loraline/objects/digest";
import { PermanentError } from "@loraline/runtime/errors";
import { z } from "zod";
import { readVision, type Vision } from "../pictures/vision.ts";
import { createEncoder, type Encoder, type EncoderOptions } from "./encoder.ts";

interface SpecialTokens {
  bos: string | null;
  eos: string | null;
  pad: string | null;
  unk: string | null;
}

export interface Base {
  /** Folder of the base's files. */
  readonly dir: string;
  readonly ref: BaseRef;
  readonly encoder: Encoder;
  /** Jinja source; null when the base has none. */
  readonly template: string | null;
  /** sha256 of the template's text; of the empty text when there is none. */
  readonly templateDigest: Digest;
  readonly special: SpecialTokens;
  /** How it writes pictures into the text. Absent: it takes none. */
  readonly vision?: Vision | undefined;
  /** Ids at which an engine stops: the tokenizer's EOS, and those of generation_config.json. null: unknown, as for a folder with a tokenizer only. */
  readonly stopIds: ReadonlySet<number> | null;
}

/** `"<|im_end|>"`, or the same as an object with flags. */
const tokenName = z
  .union([z.string(), z.object({ content: z.string() })])
  .nullish()
  .transform((token) => (typeof token === "string" ? token : (token?.content ?? null)));
const tokenizerConfig = z.object({
  bos_token: tokenName,
  eos_token: tokenName,
  pad_token: tokenName,
  unk_token: tokenName,
  chat_template: z.union([z.string(), z.array(z.object({ name: z.string(), template: z.string() }))]).nullish(),
});

const generationConfig = z.object({ eos_token_id: z.union([z.int().transform((id) => [id]), z.array(z.int())]).nullish() });

/**
 * Reads `<dir>/{base.json, tokenizer.json, tokenizer_config.json, chat_template.jinja, generation_config.json}`; the last
 * three may be absent, and so may base.json where nothing but tokens is wanted of the base, or `ref` says what would stand there.
 * @throws PermanentError BASE_FILES_MISSING, TOKENIZER_INVALID
 */
export async function loadBase(dir: string, { ref, ...options }: EncoderOptions & { ref?: BaseRef } = {}): Promise<Base> {
  const [base, tokenizer, config, template, generation, vision] = await Promise.all([
    readFile(join(dir, "base.json"), "utf8").catch(() => null),
    readFile(join(dir, "tokenizer.json"), "utf8").catch(missing(dir, "tokenizer.json")),
    readFile(join(dir, "tokenizer_config.json"), "utf8").catch(() => "{}"),
    readTemplate(dir),
    readFile(join(dir, "generation_config.json"), "utf8").catch(() => null),
    readVision(dir),
  ]);
  const tokens = tokenizerConfig.parse(JSON.parse(config));
  const encoder = await createEncoder(tokenizer, options);
  const eos = tokens.eos_token === null ? undefined : encoder.addedId(tokens.eos_token);
  const stops = generationConfig.parse(JSON.parse(generation ?? "{}")).eos_token_id ?? [];
  return {
    dir,
    ref:
      ref ??
      (base === null ? { name: basename(resolve(dir)), revision: "unknown", digest: encoder.digest } : baseRef.parse(JSON.parse(base))),
    encoder,
    template,
    templateDigest: digestOf(template ?? ""),
    vision: vision !== undefined && encoder.controls.has(vision.token) ? vision : undefined,
    special: { bos: tokens.bos_token, eos: tokens.eos_token, pad: tokens.pad_token, unk: tokens.unk_token },
    stopIds: base === null && generation === null ? null : new Set(eos === undefined ? stops : [eos, ...stops]),
  };
}

/** @returns a base's chat template; null when it has none. As in transformers the file comes first, then the field, which may have several by name. */
export async function readTemplate(dir: string): Promise<string | null> {
  const [jinja, config] = await Promise.all([
    readFile(join(dir, "chat_template.jinja"), "utf8").catch(() => null),
    readFile(join(dir, "tokenizer_config.json"), "utf8").catch(() => "{}"),
  ]);
  const { chat_template: inline } = tokenizerConfig.parse(JSON.parse(config));
  return jinja ?? (typeof inline === "string" ? inline : (inline?.find(({ name }) => name === "default")?.template ?? null));
}

/** @returns a key that is equal for bases that give equal tokens. */
export const identityOf = ({ ref, encoder, templateDigest, special, stopIds, vision }: Base): string =>
  JSON.stringify([
    ref,
    encoder.digest,
    templateDigest,
    special,
    stopIds === null ? null : [...stopIds].sort((a, b) => a - b),
    ...(vision === undefined ? [] : [vision]),
  ]);

const missing = (dir: string, file: string) => (error: unknown) => {
  throw new PermanentError(
    "BASE_FILES_MISSING",
    `${join(dir, file)} cannot be read: ${(error as Error).message}. Put the base's files there.`,
    {
      param: "base",
      cause: error,
    },
  );
};

/** A cache of bases by name. A base is loaded again when its files change. */
export function createBases(basesDir: string): (name: string) => Promise<Base> {
  const loaded = new Map<string, { version: string; base: Promise<Base> }>();
  return async (name) => {
    const dir = join(basesDir, name);
    const version = await baseVersion(dir);
    const known = loaded.get(name);
    if (known?.version === version) return known.base;
    const base = readBaseRef(dir).then((ref) => loadBase(dir, { ref }));
    loaded.set(name, { version, base });
    base.catch(() => loaded.delete(name));
    return base;
  };
}
