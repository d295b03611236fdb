/** Decodes rows of a folder that `tokenizeRecords` wrote to text, with the information which parts are trained. */
import { createReadStream } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { Sample } from "@loraline/contracts";
import { explainSystemError, PermanentError } from "@loraline/runtime";
import { RecordBatchReader, type Vector } from "apache-arrow";
import { z } from "zod";
import { ignored } from "../encoder/encode-pieces.ts";
import type { Encoder } from "../encoder/encoder.ts";
import { type TokenFolderManifest, tokenFolderManifest } from "../tokenize-records.ts";

export interface TokenRow {
  /** Number of the row, from 0. */
  row: number;
  /** Source lines of the sequences in the row. */
  lines: number[];
  /** One list of segments per sequence of the row. */
  sequences: {
    tokens: number;
    supervised: number;
    segments: Sample["segments"];
    /** Of comparisons: 1 is the better answer, 0 the worse one. */
    side?: number;
  }[];
}

/** @throws PermanentError TOKENS_MISSING: no folder of shards, or one that is not complete. */
export async function readTokenFolder(dir: string): Promise<TokenFolderManifest> {
  const path = join(dir, "manifest.json");
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (error) {
    throw new PermanentError(
      "TOKENS_MISSING",
      `${path} cannot be read, so ${dir} holds no tokens or is not complete. Make it with \`loraline tokenize FILE --base DIR --out ${dir}\`.`,
      { cause: error, param: "dir" },
    );
  }
  const parsed = tokenFolderManifest.safeParse(parsedOrNothing(text));
  if (parsed.success) return parsed.data;
  throw new PermanentError("TOKENS_MISSING", `${path} is not a manifest of tokens: ${z.prettifyError(parsed.error)}`, { param: "dir" });
}

const parsedOrNothing = (text: string): unknown => {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
};

/**
 * @param rows - `[from, to)`, counted over all shards.
 * @throws PermanentError ROW_UNKNOWN, DISK_FAULT
 */
export async function* showTokenRows(
  dir: string,
  { shards, totals }: TokenFolderManifest,
  encoder: Pick<Encoder, "decode">,
  [from, to]: readonly [number, number],
): AsyncGenerator<TokenRow> {
  if (from >= totals.rows) {
    throw new PermanentError("ROW_UNKNOWN", `there is no row ${from}: ${dir} holds rows 0 to ${totals.rows - 1}.`, { param: "row" });
  }
  const lines = (await readFile(join(dir, "lines.txt"), "utf8")).split("\n");
  let before = 0;
  for (const shard of shards) {
    const [first, last] = [Math.max(from - before, 0), Math.min(to - before, shard.rows)];
    if (first < last) {
      let seen = 0;
      for await (const batch of await openShard(join(dir, shard.file))) {
        for (let index = Math.max(first - seen, 0); index < Math.min(last - seen, batch.numRows); index++) {
          const row = before + seen + index;
          const column = (name: string): number[] => Array.from((batch.getChild(name) as Vector).get(index) as Vector, Number);
          const sequences: TokenRow["sequences"] = [];
          const [ids, labels] = [column("input_ids"), column("labels")];
          const sides = batch.getChild("sides") === null ? [] : column("sides");
          let start = 0;
          for (const [at, length] of column("seq_lengths").entries()) {
            const decoded = await decodeMasked(encoder, ids.slice(start, start + length), labels.slice(start, start + length));
            const side = sides[at];
            sequences.push(side === undefined ? decoded : { ...decoded, side });
            start += length;
          }
          yield { row, lines: (lines[row] ?? "").split(" ").map(Number), sequences };
        }
        seen += batch.numRows;
      }
    }
    before += shard.rows;
  }
}

const openShard = async (path: string) => {
  try {
    return await RecordBatchReader.from(createReadStream(path));
  } catch (error) {
    throw explainSystemError(error, `reading ${path}`);
  }
};

/** @returns the text in segments; the tokens of a segment are all trained or all not trained. */
export async function decodeMasked(
  encoder: Pick<Encoder, "decode">,
  ids: ArrayLike<number>,
  labels: ArrayLike<number>,
): Promise<TokenRow["sequences"][number]> {
  const segments: Sample["segments"] = [];
  let supervised = 0;
  for (let start = 0; start < ids.length;) {
    const trained = labels[start] !== ignored;
    let end = start;
    while (end < ids.length && (labels[end] !== ignored) === trained) end++;
    if (trained) supervised += end - start;
    segments.push({ text: await encoder.decode(Array.prototype.slice.call(ids, start, end) as number[]), trained });
    start = end;
  }
  return { tokens: ids.length, supervised, segments };
}
