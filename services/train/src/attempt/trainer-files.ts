/**
 * Files that the trainer wrote, as the courier reads them. The trainer may have been taken over by its data, and can put anything into its
 * folder: a link to the courier's own files, a pipe that never ends, a text without end.
 */
import { constants, type FileHandle, open, readlink, realpath } from "node:fs/promises";
import { explainSystemError, PermanentError } from "@loraline/runtime";
import type { z } from "zod";
import { tailOf } from "./attempt-files.ts";

/** Far more than a result with all its probes has. */
const jsonBytes = 64 * 1024 * 1024;

/**
 * Opens a file that really lies below `root`, wherever its path seems to lead.
 * @throws PermanentError TRAINER_FILE_REFUSED; what `open` throws.
 */
export async function openTrainerFile(path: string, root: string): Promise<FileHandle> {
  const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    // Judged after it is open, since a path can be exchanged at any time.
    const [place, top, stat] = await Promise.all([readlink(`/proc/self/fd/${file.fd}`), realpath(root), file.stat()]);
    if (stat.isFile() && place.startsWith(`${top}/`)) return file;
    const what = stat.isFile() ? "leads out of the attempt's folder" : "is no file";
    throw new PermanentError("TRAINER_FILE_REFUSED", `the trainer left ${path}, which ${what}. It is not read.`);
  } catch (error) {
    await file.close();
    throw error;
  }
}

/** Calls `use` with a path of the very file that was opened and judged: the trainer cannot exchange it any more. */
export async function withTrainerFile<T>(path: string, root: string, use: (path: string) => Promise<T>): Promise<T> {
  await using file = await openTrainerFile(path, root);
  return await use(`/proc/self/fd/${file.fd}`);
}

/** The last characters of a text; empty when it cannot be read. */
export async function tailOfTrainerFile(path: string, root: string, characters = 2000): Promise<string> {
  try {
    return await withTrainerFile(path, root, (opened) => tailOf(opened, characters));
  } catch {
    return "";
  }
}

/** undefined when the file is missing, half-written, or not what it should be. */
export async function readTrainerJson<T extends z.ZodType>(path: string, root: string, schema: T): Promise<z.output<T> | undefined> {
  try {
    await using file = await openTrainerFile(path, root);
    if ((await file.stat()).size > jsonBytes) return undefined;
    return schema.safeParse(JSON.parse(await file.readFile("utf8"))).data;
  } catch (error) {
    if (error instanceof SyntaxError || (error instanceof PermanentError && error.code === "TRAINER_FILE_REFUSED")) return undefined;
    if (["ENOENT", "ENOTDIR"].includes((error as NodeJS.ErrnoException).code ?? "")) return undefined;
    throw explainSystemError(error, `reading ${path}`);
  }
}
