/** Chooses the files of an archive or folder that are read as one dataset. Pure. */

const dataFile = /\.(?:parquet|jsonl|ndjson|json|csv|tsv|arrow|feather|xlsx|conll|conllu|iob2?|bio)(?:\.(?:gz|zst))?$/i;
const textFile = /\.(?:txt|text|md|markdown)(?:\.(?:gz|zst))?$/i;
/** Pictures, which rows name. */
const pictureFile = /\.(?:png|jpe?g|webp|gif)$/i;
/** Files that programs leave beside data, and that nobody means. */
const litter = /(?:^|\/)(?:\.|__MACOSX\/|Thumbs\.db$|desktop\.ini$)/i;
/** Files that describe data, such as those that `save_to_disk` writes. */
const description = /(?:^|\/)(?:dataset_infos?|dataset_dict|state|config|generation_config|tokenizer[^/]*|package|package-lock)\.json$/i;
const otherSplits = ["test", "testing", "eval", "evaluation", "val", "valid", "validation", "dev"];

interface ArchiveFiles {
  /** In the order in which they are read. */
  readonly read: string[];
  /** Files that a person may have meant, and that are not read. */
  readonly left: string[];
  /** Pictures, which rows may name. */
  readonly pictures: string[];
  /**
   * Where there is no data file: of a text its picture, if they stand side by side under one name (1.png, 1.txt). Not empty: the texts are captions,
   * and only they are read.
   */
  readonly captions: ReadonlyMap<string, string>;
}

/**
 * Data files are read; text files (txt, md) only where there is no data file, as a README beside data is no data. Where some files are
 * named after another split (test, validation, …), they are left out: what is trained on and what is measured with stay apart.
 * @param paths - of files that are not empty.
 */
export function decideArchiveFiles(paths: readonly string[]): ArchiveFiles {
  const meant = paths.filter((path) => !litter.test(path) && !description.test(path)).toSorted((a, b) => (a < b ? -1 : 1));
  const data = meant.filter((path) => dataFile.test(path));
  const candidates = data.length > 0 ? data : meant.filter((path) => textFile.test(path));
  const train = candidates.filter((path) => !otherSplits.some((split) => namesPart(path, split)));
  const pictures = meant.filter((path) => pictureFile.test(path));
  const pictureOf = new Map(pictures.map((path) => [withoutEnding(path), path]));
  const texts = data.length > 0 ? [] : train.length > 0 ? train : candidates;
  const captions = new Map(
    texts.flatMap((path): [string, string][] => {
      const picture = pictureOf.get(withoutEnding(path));
      return picture === undefined ? [] : [[path, picture]];
    }),
  );
  const read = captions.size > 0 ? [...captions.keys()] : train.length > 0 ? train : candidates;
  const chosen = new Set(read);
  return { read, left: meant.filter((path) => !chosen.has(path) && !pictureFile.test(path)), pictures, captions };
}

const withoutEnding = (path: string): string => path.replace(/\.[^./]+$/, "");

/** Whether a path has `word` as a word of its own: `data/test-00000-of-00002.parquet` has `test`. */
const namesPart = (path: string, word: string): boolean => new RegExp(`(?:^|[/_.-])${word}(?:[/_.-]|$)`, "i").test(path);

/** Whether a file's name says that it is plain text or Markdown. */
export const isTextFile = (name: string | undefined): boolean => name !== undefined && textFile.test(name);
