/** Files that are read at any place: Parquet's table of contents stands at the end. */
import { randomUUID } from "node:crypto";
import { type FileHandle, open, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { explainSystemError, PermanentError } from "@loraline/runtime";

/** A temporary file. It has no name from the start, so nothing is left of it however the process ends. */
export async function openNameless(): Promise<FileHandle> {
  const path = join(tmpdir(), `loraline-${randomUUID()}`);
  const file = await open(path, "wx+");
  await rm(path);
  return file;
}

export interface RandomAccess extends AsyncDisposable {
  readonly size: number;
  /** Exactly the bytes from `start` to before `end`, in memory of their own. @throws PermanentError FILE_CORRUPT when they are not in the file. */
  read(start: number, end: number): Promise<ArrayBuffer>;
}

/** @param source - a file that is there already, or bytes, which are written to a temporary one. */
export async function openRandomAccess(source: AsyncIterable<Uint8Array> | { readonly file: string }): Promise<RandomAccess> {
  const file = "file" in source ? await open(source.file, "r") : await openNameless();
  try {
    if (!("file" in source)) {
      try {
        for await (const chunk of source) await file.appendFile(chunk);
      } catch (error) {
        throw explainSystemError(error, "keeping a file in the temporary directory");
      }
    }
    const { size } = await file.stat();
    return {
      size,
      async read(start, end) {
        if (!(start >= 0 && end >= start && end <= size)) {
          throw new PermanentError("FILE_CORRUPT", `the file speaks of bytes ${start} to ${end}, and has ${size}. Write it again.`);
        }
        const bytes = new Uint8Array(end - start);
        let filled = 0;
        while (filled < bytes.length) {
          const { bytesRead } = await file.read(bytes, filled, bytes.length - filled, start + filled);
          if (bytesRead === 0) throw new Error("the file became shorter while it was read");
          filled += bytesRead;
        }
        return bytes.buffer;
      },
      [Symbol.asyncDispose]: () => file.close(),
    };
  } catch (error) {
    await file.close();
    throw error;
  }
}
