/** The files of a tar archive, each as a source of bytes: copied one after the other into a temporary file, because tar has no table of contents. */
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { explainSystemError, PermanentError } from "@loraline/runtime";
import { extract } from "tar-stream";
import { openNameless } from "../spool.ts";
import type { UnpackLimits } from "../unpack.ts";
import { type Archive, mostEntries, mostNameBytes } from "./read-zip.ts";

/** @throws PermanentError FILE_CORRUPT, FILE_TRUNCATED, FILE_TOO_LARGE, CONTAINER_UNSUPPORTED; what `source` throws. */
export async function openTar(source: AsyncIterable<Uint8Array>, { maxUnpackedBytes }: UnpackLimits): Promise<Archive> {
  const file = await openNameless();
  const entries = new Map<string, { start: number; size: number }>();
  let end = 0;
  let broken: { error: unknown } | undefined;
  async function* bytes(): AsyncGenerator<Uint8Array> {
    try {
      yield* source;
    } catch (error) {
      // A fault of the source is told as it is: the reader of the archive would only say that it ends.
      broken = { error };
      throw error;
    }
  }
  try {
    const reader = extract();
    const feeding = pipeline(Readable.from(bytes(), { objectMode: false }), reader).catch(() => undefined);
    try {
      for await (const entry of reader) {
        const { name, size, type } = entry.header;
        if (Buffer.byteLength(name) > mostNameBytes) {
          const message = `a file in the tar archive has a name of ${Buffer.byteLength(name)} bytes; ${mostNameBytes} are allowed. Pack it with a shorter name.`;
          throw new PermanentError("CONTAINER_UNSUPPORTED", message);
        }
        // Links could lead anywhere; folders and devices hold nothing.
        if (type !== "file" && type !== "contiguous-file") {
          entry.resume();
          continue;
        }
        if (entries.size >= mostEntries || end + size > maxUnpackedBytes) {
          throw new PermanentError(
            "FILE_TOO_LARGE",
            `the tar archive holds more than ${mostEntries} files or ${maxUnpackedBytes} bytes. Split it, or upload its files.`,
          );
        }
        const start = end;
        for await (const part of entry as AsyncIterable<Uint8Array>) {
          await file.appendFile(part);
          end += part.byteLength;
        }
        // As when it is unpacked, the last file of a name counts.
        entries.set(name.replace(/^(?:\.\/)+/, ""), { start, size: end - start });
      }
    } finally {
      reader.destroy();
      await feeding;
    }
  } catch (error) {
    await file.close();
    if (broken !== undefined) throw broken.error;
    if (error instanceof PermanentError) throw error;
    const { message, syscall } = error as NodeJS.ErrnoException;
    if (syscall !== undefined) throw explainSystemError(error, "keeping an archive's files in the temporary directory");
    if (/unexpected end|premature/i.test(message)) {
      throw new PermanentError("FILE_TRUNCATED", "the tar archive ends too early: it was cut off. Upload it again, whole.", {
        cause: error,
      });
    }
    throw new PermanentError("FILE_CORRUPT", `the tar archive is damaged (${message}). Pack and upload it again.`, { cause: error });
  }
  return {
    files: [...entries].map(([name, { size }]) => ({ name, size })),
    async *open(name) {
      const { start, size } = entries.get(name) as { start: number; size: number };
      if (size > 0) yield* file.createReadStream({ start, end: start + size - 1, autoClose: false }) as AsyncIterable<Uint8Array>;
    },
    [Symbol.asyncDispose]: () => file.close(),
  };
}
