/** The rows that every kind of container gives: in order, each one separate. */
import type { FilesBeside } from "../pictures/take-pictures.ts";
import type { Refusal } from "../formats/detect.ts";

export type Container = "jsonl" | "json-array" | "csv" | "tsv" | "parquet" | "arrow" | "xlsx" | "text" | "conll" | "zip";

/** Where a row is: `line` stands in records and rejections, `place` in messages for people, such as `element 3 (line 7)`. */
interface RowPlace {
  readonly line: number;
  readonly place: string;
  /** Of several files, the one that it stands in. */
  readonly file?: string;
  /** All files of the archive that it stands in, such as the pictures that it names. Open as long as batches are read. */
  readonly beside?: FilesBeside;
}

/** A row of text that is still to be parsed, a row of values, or why there is none. */
export type RawRow = RowPlace &
  (
    | { readonly text: string; readonly firstLine: number }
    /** `exact`: the same value with numbers spelled as in the file. */
    | { readonly value: Readonly<Record<string, unknown>>; readonly exact: () => unknown }
    | { readonly refusal: Refusal }
  );

/** What a reader found or decided that a person should know, such as a file's encoding. */
export interface Note {
  readonly code: string;
  readonly message: string;
}

export interface RawRows {
  readonly container: Container;
  /** Grows while the batches are read. */
  readonly notes: readonly Note[];
  /**
   * Rows in batches, as they are read. Throws a PermanentError where the rest of the file cannot be read (FILE_TRUNCATED,
   * FILE_CORRUPT, …). An error within one row rejects that row only.
   */
  readonly batches: AsyncIterable<RawRow[]>;
}

export const refused = (line: number, place: string, code: string, message: string): RawRow => ({
  line,
  place,
  refusal: { code, message },
});

export const rowTooLarge = (line: number, place: string, bytes: number, limit: number): RawRow =>
  refused(line, place, "ROW_TOO_LARGE", `${place} has ${bytes} bytes; a row may have ${limit}. Split it, or shorten it.`);
