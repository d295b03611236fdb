/**
 * CoNLL files to rows of tokens and tags: a token with its columns on each line, a blank line between sentences. The tag is the last
 * column (CoNLL-2003 and its like), or the universal part of speech of CoNLL-U.
 */
import { decodeUtf8 } from "./decode-text.ts";
import { linesOf } from "./read-plain-text.ts";
import { type RawRow, refused, rowTooLarge } from "../raw-rows.ts";
import { notText } from "./split-rows.ts";

const tag = /^(?:O|[BIESLUM]-\S+)$/;
const wordOfU = /^\d+$/;

type Kind = "tags" | "conllu";

/** Lines of the head by which a file is judged. */
const judgedLines = 200;

/** @param head - beginning of the text. @returns undefined: it is no CoNLL file. */
export function recogniseConll(head: string): Kind | undefined {
  const lines = head.split("\n").slice(0, -1);
  const kept = (lines.length > 0 ? lines : [head]).slice(0, judgedLines).map((line) => line.trimEnd());
  const rows = kept.filter((line) => line !== "" && !isAside(line)).map(cellsOf);
  const [first] = rows;
  if (first === undefined || rows.length < 2 || !kept.includes("")) return undefined;
  if (rows.every((cells) => cells.length === 10 && /^\d+(?:[-.]\d+)?$/.test(cells[0] as string))) return "conllu";
  const isTagged = rows.every((cells) => cells.length >= 2 && cells.length === first.length && tag.test(cells.at(-1) as string));
  return isTagged ? "tags" : undefined;
}

/** Comments of CoNLL-U, and the marks between documents. */
const isAside = (line: string): boolean => line.startsWith("# ") || line.startsWith("-DOCSTART-");

const cellsOf = (line: string): string[] => (line.includes("\t") ? line.split("\t") : line.trim().split(/\s+/));

/** @throws what `source` throws. */
export async function* readConll(
  source: AsyncIterable<Uint8Array>,
  { kind, maxRowBytes }: { kind: Kind; maxRowBytes: number },
): AsyncGenerator<RawRow[], void, undefined> {
  let rows: RawRow[] = [];
  let line = 0;
  let begin = 0;
  let size = 0;
  let fault: RawRow | undefined;
  let [tokens, tags]: [string[], string[]] = [[], []];
  const finish = (): void => {
    const [place, at] = [`line ${begin}`, begin];
    if (fault !== undefined) rows.push(fault);
    else if (size > maxRowBytes) rows.push(rowTooLarge(at, place, size, maxRowBytes));
    else if (tokens.length > 0) {
      const value = kind === "conllu" ? { tokens, upos: tags } : { tokens, ner_tags: tags };
      rows.push({ line: at, place, value, exact: () => value });
    }
    [tokens, tags, begin, size, fault] = [[], [], 0, 0, undefined];
  };
  for await (const bytes of linesOf(source, maxRowBytes)) {
    line++;
    const text = decodeUtf8(bytes)
      ?.replace(/^\uFEFF/, "")
      .trimEnd();
    if (text === "") {
      finish();
      if (rows.length >= 256) {
        yield rows;
        rows = [];
      }
      continue;
    }
    if (text !== undefined && isAside(text)) continue;
    if (begin === 0) begin = line;
    size += bytes.byteLength;
    // The rest of a sentence that is refused, or too large, is only counted.
    if (fault !== undefined || size > maxRowBytes) continue;
    if (text === undefined) {
      fault = notText(begin, `line ${line}`);
      continue;
    }
    const cells = cellsOf(text);
    const [token, label] = kind === "conllu" ? [cells[1], cells[3]] : [cells[0], cells.at(-1)];
    // Parts of a contraction (`3-4`) and empty nodes (`3.1`) of CoNLL-U repeat words or stand for none.
    if (kind === "conllu" && !wordOfU.test(cells[0] as string)) continue;
    if (token === undefined || label === undefined || cells.length < 2 || token === "") {
      const message = `line ${line} has ${cells.length} ${cells.length === 1 ? "column" : "columns"}; a token and its tag are expected. Correct the line.`;
      fault = refused(begin, `line ${begin}`, "CONLL_LINE", message);
      continue;
    }
    tokens.push(token);
    tags.push(label);
  }
  finish();
  yield rows;
}
