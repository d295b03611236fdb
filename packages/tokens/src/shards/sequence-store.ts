/**
 * Keeps sequences on disk until they are packed: packing needs all lengths first and then reads sequences in any order, and they may
 * be larger than memory. The file is unlinked at once, so it disappears with the process.
 */
import { randomUUID } from "node:crypto";
import { closeSync, openSync, readSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Digest, PictureEntry } from "@loraline/contracts";
import { explainSystemError } from "@loraline/runtime";
import type { EncodedChunk } from "../encoder/encoded-chunk.ts";

export interface SequenceStore extends Disposable {
  readonly count: number;
  /** Tokens of sequence `index`. */
  length(index: number): number;
  /** Trained tokens of sequence `index`. */
  supervised(index: number): number;
  /** Of a preference: 1 of a chosen or good answer, 0 of another one. */
  side(index: number): number;
  /** Pictures that sequence `index` shows, in the order of their tokens. */
  pictures(index: number): readonly PictureEntry[];
  /** Adds a chunk's sequences and returns the index of the first; the others follow. */
  add(chunk: Pick<EncodedChunk, "lengths" | "supervised" | "sides" | "data" | "pictures" | "shown">): number;
  /** Copies a sequence into the arrays, from `at` on. */
  read(index: number, ids: Int32Array, labels: Int32Array, at: number): void;
}

export function createSequenceStore(): SequenceStore {
  const file = openNameless();
  let count = 0;
  let offsets = new Float64Array(1024);
  let lengths = new Int32Array(1024);
  let supervised = new Int32Array(1024);
  let sides = new Int32Array(0);
  const pictures = new Map<Digest, PictureEntry>();
  const shown = new Map<number, readonly PictureEntry[]>();
  let written = 0;
  let scratch = new Int32Array(4096);
  const bytesOf = (array: Int32Array): Buffer => Buffer.from(array.buffer, array.byteOffset, array.byteLength);
  const grown = <T extends Float64Array | Int32Array>(array: T, size: number): T => {
    const larger = new (array.constructor as new (size: number) => T)(size);
    larger.set(array);
    return larger;
  };
  const check = (index: number): void => {
    if (!(index >= 0 && index < count)) throw new RangeError(`there is no sequence ${index}`);
  };

  return {
    get count() {
      return count;
    },
    length(index) {
      check(index);
      return lengths[index] as number;
    },
    supervised(index) {
      check(index);
      return supervised[index] as number;
    },
    side(index) {
      check(index);
      return sides[index] as number;
    },
    pictures(index) {
      check(index);
      return shown.get(index) ?? [];
    },
    add(chunk) {
      const first = count;
      // Each picture is kept once, however many sequences of however many chunks show it.
      const entries = chunk.pictures.map((entry) => {
        const known = pictures.get(entry.digest) ?? entry;
        pictures.set(entry.digest, known);
        return known;
      });
      for (const [sequence, which] of chunk.shown) {
        shown.set(
          first + sequence,
          which.map((at) => entries[at] as PictureEntry),
        );
      }
      const more = chunk.lengths.length;
      if (chunk.sides.length > 0) {
        if (count + more > sides.length) sides = grown(sides, Math.max(sides.length * 2, count + more));
        sides.set(chunk.sides, count);
      }
      if (count + more > lengths.length) {
        const size = Math.max(lengths.length * 2, count + more);
        offsets = grown(offsets, size);
        lengths = grown(lengths, size);
        supervised = grown(supervised, size);
      }
      const bytes = bytesOf(chunk.data);
      try {
        for (let done = 0; done < bytes.byteLength;) done += writeSync(file, bytes, done, bytes.byteLength - done, written + done);
      } catch (error) {
        throw explainSystemError(error, "keeping sequences in the temporary directory");
      }
      lengths.set(chunk.lengths, count);
      supervised.set(chunk.supervised, count);
      for (let at = 0; at < more; at++) {
        offsets[count++] = written;
        written += (chunk.lengths[at] as number) * 8;
      }
      return first;
    },
    read(index, ids, labels, at) {
      check(index);
      const length = lengths[index] as number;
      if (scratch.length < length * 2) scratch = new Int32Array(length * 4);
      const target = bytesOf(scratch.subarray(0, length * 2));
      for (let done = 0; done < target.byteLength;) {
        const read = readSync(file, target, done, target.byteLength - done, (offsets[index] as number) + done);
        if (read === 0) throw new Error("the temporary file of sequences is shorter than what was written to it");
        done += read;
      }
      ids.set(scratch.subarray(0, length), at);
      labels.set(scratch.subarray(length, length * 2), at);
    },
    [Symbol.dispose]: () => closeSync(file),
  };
}

function openNameless(): number {
  const path = join(tmpdir(), `loraline-${randomUUID()}`);
  try {
    const file = openSync(path, "wx+", 0o600);
    rmSync(path);
    return file;
  } catch (error) {
    throw explainSystemError(error, `opening ${path}`);
  }
}
