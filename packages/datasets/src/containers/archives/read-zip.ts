/** The files of a ZIP archive, each as a source of bytes. A small archive may claim to unpack to any size, so sizes are judged first. */
import { open } from "node:fs/promises";
import { PermanentError } from "@loraline/runtime";
import { type Entry, fromFdPromise } from "yauzl";
import { openNameless } from "../spool.ts";
import type { UnpackLimits } from "../unpack.ts";

/** Files of an archive. More is an attack, or pictures that belong into a Parquet file. */
export const mostEntries = 100_000;
/** Bytes of a file's name: it is in every message about a row of the file. */
export const mostNameBytes = 1024;
/** Bytes of the archive's table, names and comments included: it is in memory as a whole. */
const mostTableBytes = 64 * 1024 ** 2;

export interface Archive extends AsyncDisposable {
  /** Files in the order of the archive's table, without folders; sizes in bytes, unpacked. */
  readonly files: readonly { readonly name: string; readonly size: number }[];
  open(name: string): AsyncIterable<Uint8Array>;
}

/**
 * @param source - a file that is there already, or bytes, which are written to a temporary one.
 * @throws PermanentError FILE_CORRUPT, FILE_TOO_LARGE, CONTAINER_UNSUPPORTED (encrypted).
 */
export async function openZip(
  source: AsyncIterable<Uint8Array> | { readonly file: string },
  { maxUnpackedBytes, maxRatio, ratioFromBytes }: UnpackLimits,
): Promise<Archive> {
  const file = "file" in source ? await open(source.file, "r") : await openNameless();
  try {
    if (!("file" in source)) for await (const chunk of source) await file.appendFile(chunk);
    const { size: packed } = await file.stat();
    const zip = await fromFdPromise(file.fd, { autoClose: false, lazyEntries: true, strictFileNames: false }).catch(faultOf);
    const entries = new Map<string, Entry>();
    let total = 0;
    let table = 0;
    try {
      for await (const entry of zip.eachEntry()) {
        if (entry.fileNameLength > mostNameBytes) {
          const message = `a file in the ZIP archive has a name of ${entry.fileNameLength} bytes; ${mostNameBytes} are allowed. Pack it with a shorter name.`;
          throw new PermanentError("CONTAINER_UNSUPPORTED", message);
        }
        table += entry.fileNameLength + entry.extraFieldLength + entry.fileCommentLength;
        if (table > mostTableBytes) {
          throw new PermanentError(
            "FILE_TOO_LARGE",
            `names and comments in the ZIP archive take more than ${mostTableBytes} bytes. Pack its files without comments.`,
          );
        }
        if (entry.fileName.endsWith("/")) continue;
        if (entry.isEncrypted()) {
          throw new PermanentError("CONTAINER_UNSUPPORTED", "the ZIP archive is protected by a password. Pack it without one.");
        }
        entries.set(entry.fileName, entry);
        total += entry.uncompressedSize;
        if (entries.size > mostEntries || total > maxUnpackedBytes || (total > ratioFromBytes && total > packed * maxRatio)) {
          throw new PermanentError(
            "FILE_TOO_LARGE",
            `the ZIP archive holds more than ${mostEntries} files or ${maxUnpackedBytes} bytes, or unpacks to more than ${maxRatio} times its size, as bombs do. Split it, or upload its files.`,
          );
        }
      }
    } catch (error) {
      return faultOf(error);
    }
    return {
      files: [...entries.values()].map(({ fileName, uncompressedSize }) => ({ name: fileName, size: uncompressedSize })),
      async *open(name) {
        const stream = await zip.openReadStreamPromise(entries.get(name) as Entry).catch(faultOf);
        try {
          yield* stream as AsyncIterable<Uint8Array>;
        } catch (error) {
          faultOf(error);
        } finally {
          stream.destroy();
        }
      },
      [Symbol.asyncDispose]: () => file.close(),
    };
  } catch (error) {
    await file.close();
    throw error;
  }
}

/** Everything that yauzl throws speaks of the archive, but for errors of the disk. */
function faultOf(error: unknown): never {
  if (error instanceof PermanentError || (error as NodeJS.ErrnoException).syscall !== undefined) throw error;
  const { message } = error as Error;
  throw new PermanentError("FILE_CORRUPT", `the ZIP archive is damaged (${message}). Pack and upload it again.`, { cause: error });
}
