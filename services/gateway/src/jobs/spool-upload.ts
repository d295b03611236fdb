/** Bytes of an upload in a temporary file, until the whole request is known to be right. */
import { createHash, randomUUID } from "node:crypto";
import { createWriteStream } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import type { Digest } from "@loraline/contracts";
import { explainSystemError } from "@loraline/runtime";

export interface SpooledUpload extends AsyncDisposable {
  readonly file: string;
  readonly digest: Digest;
  /** Bytes. */
  readonly size: number;
}

/** @throws PermanentError DISK_FULL; whatever `bytes` throws. */
export async function spoolUpload(bytes: AsyncIterable<Uint8Array>, dir: string): Promise<SpooledUpload> {
  const file = join(dir, `loraline-${randomUUID()}.upload`);
  const hash = createHash("sha256");
  let size = 0;
  const noted = async function* (): AsyncGenerator<Uint8Array> {
    for await (const chunk of bytes) {
      hash.update(chunk);
      size += chunk.byteLength;
      yield chunk;
    }
  };
  try {
    await pipeline(noted(), createWriteStream(file, { flags: "wx" }));
  } catch (error) {
    await rm(file, { force: true });
    throw explainSystemError(error, `spooling an upload to ${file}`);
  }
  return { file, digest: `sha256:${hash.digest("hex")}`, size, [Symbol.asyncDispose]: () => rm(file, { force: true }) };
}
