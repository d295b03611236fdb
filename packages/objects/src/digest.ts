/** Digests of streams, and sources made ready to be stored. */
import { createHash, randomUUID } from "node:crypto";
import { createReadStream, createWriteStream } from "node:fs";
import { rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import type { Digest } from "@loraline/contracts";
import { explainSystemError, PermanentError } from "@loraline/runtime/errors";
import type { BlobSource } from "./objects.ts";

const readChunk = 512 * 1024;

/** Passes bytes through; at the end throws what `onMismatch` makes of the digest found, if it is not `expected`. */
export async function* verified(
  source: AsyncIterable<Uint8Array>,
  expected: Digest,
  onMismatch: (actual: Digest, bytes: number) => Error,
): AsyncGenerator<Uint8Array, void, undefined> {
  const hash = createHash("sha256");
  let bytes = 0;
  for await (const chunk of source) {
    hash.update(chunk);
    bytes += chunk.byteLength;
    yield chunk;
  }
  const actual: Digest = `sha256:${hash.digest("hex")}`;
  if (actual !== expected) throw onMismatch(actual, bytes);
}

export const digestOf = (bytes: Uint8Array | string): Digest => `sha256:${createHash("sha256").update(bytes).digest("hex")}`;

export async function digestOfFile(path: string): Promise<Digest> {
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(path, { highWaterMark: readChunk })) hash.update(chunk as Uint8Array);
  return `sha256:${hash.digest("hex")}`;
}

/** Bytes of a source, with the error that stopped them, so that the caller can tell a failing source from a failing store. */
export function noting(source: AsyncIterable<Uint8Array>): { bytes: AsyncGenerator<Uint8Array>; failure: { error: unknown } | undefined } {
  const noted: ReturnType<typeof noting> = { bytes: pass(), failure: undefined };
  async function* pass(): AsyncGenerator<Uint8Array> {
    try {
      yield* source;
    } catch (error) {
      noted.failure = { error };
      throw error;
    }
  }
  return noted;
}

/** A source whose digest is known, and that can be streamed once. */
interface Prepared extends AsyncDisposable {
  readonly digest: Digest;
  /** Undefined when only the end of the stream will tell. */
  readonly size: number | undefined;
  /** The bytes; fails with `DIGEST_MISMATCH` at the end if they are not what the digest says. */
  stream(): AsyncIterable<Uint8Array>;
}

export async function prepare(
  source: BlobSource,
  options: { digest?: Digest | undefined; spoolDir?: string | undefined },
): Promise<Prepared> {
  const known = options.digest;
  const nothing = () => Promise.resolve();
  const checked = (bytes: AsyncIterable<Uint8Array>, digest: Digest) =>
    verified(
      bytes,
      digest,
      (actual, size) =>
        new PermanentError("DIGEST_MISMATCH", `the content is not ${digest}: its ${size} bytes are ${actual}; nothing was stored`),
    );

  if (typeof source === "string" || source instanceof Uint8Array) {
    const bytes = typeof source === "string" ? new TextEncoder().encode(source) : source;
    const digest = known ?? digestOf(bytes);
    return { digest, size: bytes.byteLength, stream: () => checked(once(bytes), digest), [Symbol.asyncDispose]: nothing };
  }

  if ("file" in source) {
    const { file } = source;
    const { size } = await stat(file);
    const digest = known ?? (await digestOfFile(file));
    return {
      digest,
      size,
      // Checked again although just hashed: the file may change between the two readings.
      stream: () => checked(createReadStream(file, { highWaterMark: readChunk }), digest),
      [Symbol.asyncDispose]: nothing,
    };
  }

  if (known !== undefined)
    return { digest: known, size: undefined, stream: () => checked(source, known), [Symbol.asyncDispose]: () => close(source) };

  const file = join(options.spoolDir ?? tmpdir(), `loraline-${randomUUID()}.spool`);
  try {
    await pipeline(source, createWriteStream(file));
    const spooled = await prepare({ file }, {});
    return { ...spooled, [Symbol.asyncDispose]: () => rm(file, { force: true }) };
  } catch (error) {
    await rm(file, { force: true });
    throw explainSystemError(error, `spooling an upload to ${file}`);
  }
}

/** Stops the source of a stream, also when nothing was read from it. */
async function close(source: AsyncIterable<Uint8Array>): Promise<void> {
  if (source instanceof Readable) source.destroy();
  else await source[Symbol.asyncIterator]().return?.();
}

async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array, void, undefined> {
  if (bytes.byteLength > 0) yield bytes;
}
