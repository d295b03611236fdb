/** Chooses the files of a hub dataset. Pure. */
import type { ImportSource } from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime";

interface ListedFile {
  readonly path: string;
  readonly size: number;
  readonly sha256: string | undefined;
}

type Asked = Pick<Extract<ImportSource, { hub: string }>, "hub" | "file" | "config" | "split">;

const dataFile = /\.(?:parquet|jsonl|ndjson|json|csv|tsv|arrow|feather)(?:\.(?:gz|zst))?$/i;
/** Files that describe a repository and are not data. */
const notData =
  /(?:^|\/)(?:dataset_infos?|dataset_dict|state|config|generation_config|tokenizer[^/]*|package|package-lock)\.json$|(?:^|\/)\./i;
const splits = ["train", "training", "test", "testing", "eval", "evaluation", "val", "valid", "validation", "dev"];
const mostListed = 20;
const mostParts = 1000;

/**
 * @returns the named file; or the files of the split (default `train`): one file, or all its shards in order.
 * @throws PermanentError HUB_FILE_MISSING, HUB_FILE_AMBIGUOUS; both list the repository's files.
 */
export function decideHubFiles(files: readonly ListedFile[], { hub, file, config, split }: Asked): ListedFile[] {
  const data = files.filter(({ path, size }) => dataFile.test(path) && !notData.test(path) && size > 0);
  const listed = (of: readonly ListedFile[]): string => {
    const paths = of.slice(0, mostListed).map(({ path }) => path);
    return `${paths.join(", ") || "none"}${of.length > mostListed ? ` and ${of.length - mostListed} more` : ""}`;
  };
  if (file !== undefined && file !== null) {
    const named = files.find(({ path }) => path === file);
    if (named !== undefined) return [named];
    throw new PermanentError("HUB_FILE_MISSING", `"${hub}" has no file "${file}". Its data files: ${listed(data)}.`, { param: "file" });
  }
  const ofConfig = config === undefined || config === null ? data : data.filter(({ path }) => namesPart(path, config));
  const wanted = split ?? "train";
  const ofSplit = ofConfig.filter(({ path }) => namesPart(path, wanted));
  // In many datasets no file name has the name of a split.
  const others = split === undefined || split === null ? ofConfig.filter(({ path }) => !splits.some((word) => namesPart(path, word))) : [];
  const found = ofSplit.length > 0 ? ofSplit : others;
  if (found.length === 0) {
    const where = config === undefined || config === null ? "" : ` of "${config}"`;
    throw new PermanentError(
      "HUB_FILE_MISSING",
      `"${hub}" has no data file for the split "${wanted}"${where}. Its data files: ${listed(data)}. Name one with \`file\`.`,
      {
        param: "file",
      },
    );
  }
  const sets = new Map<string, ListedFile[]>();
  for (const one of found) {
    const set = one.path.replace(/\d+[-_]of[-_]\d+|(?<=[-_/])\d{3,}(?=\.)/gi, "#");
    sets.set(set, [...(sets.get(set) ?? []), one]);
  }
  const [only] = sets.values();
  if (sets.size !== 1 || only === undefined || only.length > mostParts) {
    throw new PermanentError(
      "HUB_FILE_AMBIGUOUS",
      `"${hub}" has several files that may be meant: ${listed(found)}. Name one with \`file\`, or the subset with \`config\`.`,
      {
        param: "file",
      },
    );
  }
  judgeShards(only, hub);
  return only.toSorted((a, b) => (a.path < b.path ? -1 : 1));
}

/** Whether the path contains `word` as a word of its own: `data/train-00000-of-00002.parquet` contains `train`. */
function namesPart(path: string, word: string): boolean {
  const escaped = word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  return new RegExp(`(?:^|[/_.-])${escaped}(?:[/_.-]|$)`, "i").test(path);
}

/** Checks that all shards are there: their names say how many there must be. */
function judgeShards(files: readonly ListedFile[], hub: string): void {
  const total = /\d+[-_]of[-_](\d+)/i.exec(files[0]?.path ?? "")?.[1];
  if (total === undefined || Number(total) === files.length) return;
  const message = `"${hub}" has ${files.length} of ${Number(total)} shards: ${files[0]?.path} and so on. Name one with \`file\`, or try another revision.`;
  throw new PermanentError("HUB_FILE_MISSING", message, { param: "file" });
}
