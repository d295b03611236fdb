/** gzip and zstd as streams, with limits: a small file may unpack to any size (zip bombs). */
import { Readable, type Transform } from "node:stream";
import { pipeline } from "node:stream/promises";
import { createGunzip, createZstdDecompress } from "node:zlib";
import { PermanentError } from "@loraline/runtime";

export interface UnpackLimits {
  /** Bytes that may come out. */
  maxUnpackedBytes: number;
  /** Bytes out for each byte in, … */
  maxRatio: number;
  /** … asked only beyond this many bytes out: a small file of equal rows packs very well. */
  ratioFromBytes: number;
}
export const defaultUnpackLimits: UnpackLimits = {
  maxUnpackedBytes: 64 * 1024 ** 3,
  maxRatio: 200,
  ratioFromBytes: 256 * 1024 * 1024,
};

const codes = new Set(["Z_DATA_ERROR", "Z_NEED_DICT", "Z_STREAM_ERROR", "Z_MEM_ERROR"]);

/**
 * All members or frames, one after the other.
 * @throws PermanentError FILE_TRUNCATED, FILE_CORRUPT, FILE_TOO_LARGE; what `source` throws.
 */
export async function* unpack(
  source: AsyncIterable<Uint8Array>,
  packing: "gzip" | "zstd",
  limits: UnpackLimits,
): AsyncGenerator<Uint8Array, void, undefined> {
  let packed = 0;
  let unpacked = 0;
  async function* counted(): AsyncGenerator<Uint8Array> {
    for await (const chunk of source) {
      packed += chunk.byteLength;
      yield chunk;
    }
  }
  const options = { chunkSize: 32 * 1024 };
  const engine: Transform & { bytesWritten: number } = packing === "gzip" ? createGunzip(options) : createZstdDecompress(options);
  const input = Readable.from(counted(), { objectMode: false });
  // Its error comes out of the engine too, where it is caught.
  const feeding = pipeline(input, engine).catch(() => {});
  try {
    for await (const chunk of engine as AsyncIterable<Uint8Array>) {
      unpacked += chunk.byteLength;
      if (unpacked > limits.maxUnpackedBytes) {
        throw new PermanentError("FILE_TOO_LARGE", `the ${packing} file unpacks to more than ${limits.maxUnpackedBytes} bytes. Split it.`);
      }
      if (unpacked > limits.ratioFromBytes && unpacked > packed * limits.maxRatio) {
        const message = `the ${packing} file unpacks to more than ${limits.maxRatio} times its size, as bombs do. Upload it unpacked, if it is none.`;
        throw new PermanentError("FILE_TOO_LARGE", message);
      }
      yield chunk;
    }
    // gzip may end in zeros (of tapes); zstd's decoder is silent about anything.
    if (packing === "zstd" && engine.bytesWritten < packed) {
      const rest = packed - engine.bytesWritten;
      throw new PermanentError(
        "FILE_CORRUPT",
        `after the end of the zstd data there are ${rest} bytes that are no zstd. Pack the file again.`,
      );
    }
  } catch (error) {
    const { code = "", message } = error as NodeJS.ErrnoException;
    if (code === "Z_BUF_ERROR") {
      throw new PermanentError("FILE_TRUNCATED", `the ${packing} data ends too early: the file was cut off. Upload it again, whole.`, {
        cause: error,
      });
    }
    if (codes.has(code) || code.startsWith("ZSTD_")) {
      const where = `after ${unpacked} unpacked bytes`;
      throw new PermanentError("FILE_CORRUPT", `the ${packing} data is damaged ${where} (${message}). Pack and upload it again.`, {
        cause: error,
      });
    }
    throw error;
  } finally {
    input.destroy();
    engine.destroy();
    await feeding;
  }
}
