/** Several files, or a folder of them, as one ZIP archive: the server reads it as one dataset. Equal files give equal bytes. */
import { createWriteStream } from "node:fs";
import { mkdtemp, readdir, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join, posix, relative, sep } from "node:path";
import { pipeline } from "node:stream/promises";
import { decideArchiveFiles } from "@loraline/datasets";
import { PermanentError } from "@loraline/runtime";
import { ZipFile } from "yazl";

interface PackedFiles extends AsyncDisposable {
  /** The archive, or the only file itself. */
  readonly path: string;
  readonly name: string;
  /** Files that were found and are not read; names relative to what was given. */
  readonly left: readonly string[];
}

/** ZIP begins its calendar here. A file's own time would make other bytes of the same rows, and its dataset would be read anew. */
const noTime = new Date(1980, 0, 1);

/**
 * Of a folder the data files and pictures are taken, as of an archive; what is named one by one is taken whatever it is called.
 * @param given - files and folders.
 * @throws PermanentError FILE_MISSING
 */
export async function packFiles(given: readonly string[]): Promise<PackedFiles> {
  /** Name in the archive to path. */
  const taken = new Map<string, string>();
  const left: string[] = [];
  for (const path of given) {
    const info = await stat(path).catch((error: unknown) => {
      const gone = (error as NodeJS.ErrnoException).code === "ENOENT";
      const message = gone ? `there is no file or folder ${path}.` : `${path} cannot be read: ${(error as Error).message}.`;
      throw new PermanentError("FILE_MISSING", message, { cause: error, param: "file" });
    });
    const named = given.length === 1 ? "" : `${String(given.indexOf(path) + 1)}-${basename(path)}`;
    if (!info.isDirectory()) {
      taken.set(named || basename(path), path);
      continue;
    }
    const inside = new Map((await filesIn(path)).map((file) => [relative(path, file).split(sep).join(posix.sep), file]));
    const found = decideArchiveFiles([...inside.keys()]);
    if (found.read.length === 0) {
      const held = [...inside.keys()].slice(0, 10).join(", ") || "it is empty";
      const message = `the folder ${path} has no data file (${held}). Files that end in .jsonl, .json, .csv, .tsv, .xlsx, .parquet, .arrow, .conll, .txt or .md are read.`;
      throw new PermanentError("FILE_MISSING", message, { param: "file" });
    }
    for (const name of [...found.read, ...found.pictures]) taken.set(posix.join(named, name), inside.get(name) as string);
    left.push(...found.left.map((name) => posix.join(named, name)));
  }
  const [only] = taken.values();
  if (taken.size === 1 && only !== undefined) return { path: only, name: basename(only), left, async [Symbol.asyncDispose]() {} };
  const dir = await mkdtemp(join(tmpdir(), "loraline-pack-"));
  const path = join(dir, "files.zip");
  const zip = new ZipFile();
  for (const [name, file] of taken) zip.addFile(file, name, { mtime: noTime, mode: 0o100644, compress: !isPacked.test(name) });
  zip.end();
  await pipeline(zip.outputStream, createWriteStream(path));
  const name = `${basename(given[0] as string)}${given.length === 1 ? "" : ` and ${given.length - 1} more`}.zip`;
  return { path, name, left, [Symbol.asyncDispose]: () => rm(dir, { recursive: true, force: true }) };
}

const isPacked = /\.(?:gz|zst|parquet|xlsx|zip|png|jpe?g|webp|gif)$/i;

async function filesIn(folder: string): Promise<string[]> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
    .toSorted();
}
