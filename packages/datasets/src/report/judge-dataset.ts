/** Decides whether the rows that were read from a file may be trained on. Pure. */
import type { DatasetMapping, DatasetReport, Problem } from "@loraline/contracts";

/** Codes of rows of which it is not known what they mean. */
const unknown = ["FORMAT_UNKNOWN", "FORMAT_MISMATCH", "AMBIGUOUS", "JUDGEMENT_NOT_READ"];
/** A few unrecognised rows are accidents, and the report shows them all. More rows than this, and more than this share, mean that the file was misunderstood. */
const strayRows = 100;
const strayShare = 0.005;

type Read = Pick<DatasetReport, "rows" | "records" | "rejections" | "reasons" | "firstRejections">;

/**
 * @returns the reason why nothing may be trained on it; null: training is allowed.
 * A file with too many unrecognised rows is refused, unless the mapping says `on_unknown: drop`: training on a part of it would be a surprise.
 */
export function judgeDataset(filename: string, read: Read, mapping?: Pick<DatasetMapping, "on_unknown"> | null): Problem | null {
  const { rows, records, rejections, reasons, firstRejections } = read;
  const [first] = firstRejections;
  const problem = (code: string, message: string): Problem => ({ code, message, param: "file" });
  if (rows === 0) return problem("EMPTY_FILE", `${filename} is empty: there is no row in it. Give one example per row.`);
  if (records === 0) {
    if (reasons.NOT_JSON === rejections) {
      const message = `${filename} is not JSON Lines (one JSON object per line), not a JSON array and not CSV (columns named in the first line). ${first?.message}. If it is plain text, name it .txt or set the mapping's text_rows.`;
      return problem("NOT_JSON", message);
    }
    const all = `none of the ${rows} ${rows === 1 ? "row" : "rows"} of ${filename} can be trained on (${counted(reasons)}). The first reason, ${first?.message}`;
    return problem("ALL_ROWS_REJECTED", all);
  }
  const strays = Object.fromEntries(Object.entries(reasons).filter(([code]) => unknown.includes(code)));
  const count = Object.values(strays).reduce((sum, each) => sum + each, 0);
  const isTooMuch = count > rows / 2 || (count > strayRows && count > rows * strayShare);
  if (!isTooMuch || mapping?.on_unknown === "drop") return null;
  const example = firstRejections.find(({ code }) => unknown.includes(code))?.message;
  const message = `${count} of the ${rows} rows of ${filename} are not understood (${counted(strays)}).${example === undefined ? "" : ` The first, ${example}`} Say what they are with a mapping, or set its on_unknown to drop, to train on the other rows.`;
  return problem("TOO_MANY_UNKNOWN", message);
}

const counted = (reasons: Readonly<Record<string, number>>): string =>
  Object.entries(reasons)
    .map(([code, count]) => `${code}: ${count}`)
    .join(", ");
