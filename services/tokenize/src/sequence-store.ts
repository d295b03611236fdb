/**
 * Sequences on disk until they are packed: packing needs all lengths at once and then reads sequences in any order, and they
 * may be larger than memory. The file has no name from the start, so nothing is left of it when the process dies.
 */
import { randomUUID } from "node:crypto";
import { closeSync, openSync, readSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { explainSystemError } from "@loraline/runtime";
import type { Sequence } from "./encode-records.ts";

export interface SequenceStore extends Disposable {
  readonly count: number;
  /** Tokens of sequence `index`. */
  length(index: number): number;
  /** Trained tokens of sequence `index`. */
  supervised(index: number): number;
  add(sequence: Sequence): number;
  /** Copies a sequence into the arrays, from `at` on. */
  read(index: number, ids: Int32Array, labels: Int32Array, at: number): void;
}

const bufferBytes = 1024 * 1024;

export function createSequenceStore(): SequenceStore {
  const file = openNameless();
  const sequences: { offset: number; length: number; supervised: number }[] = [];
  let written = 0;
  let pending: Buffer[] = [];
  let pendingBytes = 0;
  const bytesOf = (array: Int32Array): Buffer => Buffer.from(array.buffer, array.byteOffset, array.byteLength);

  const flush = (): void => {
    try {
      const bytes = Buffer.concat(pending);
      for (let done = 0; done < bytes.byteLength;) done += writeSync(file, bytes, done, bytes.byteLength - done, written + done);
      written += bytes.byteLength;
      pending = [];
      pendingBytes = 0;
    } catch (error) {
      throw explainSystemError(error, "keeping sequences in the temporary directory");
    }
  };
  const readInto = (target: Buffer, offset: number): void => {
    for (let done = 0; done < target.byteLength;) {
      const read = readSync(file, target, done, target.byteLength - done, offset + done);
      if (read === 0) throw new Error("the temporary file of sequences is shorter than what was written to it");
      done += read;
    }
  };
  const entry = (index: number) => {
    const found = sequences[index];
    if (found === undefined) throw new RangeError(`there is no sequence ${index}`);
    return found;
  };

  return {
    get count() {
      return sequences.length;
    },
    length: (index) => entry(index).length,
    supervised: (index) => entry(index).supervised,
    add({ ids, labels }) {
      sequences.push({
        offset: written + pendingBytes,
        length: ids.length,
        supervised: labels.reduce((sum, label) => (label < 0 ? sum : sum + 1), 0),
      });
      pending.push(bytesOf(ids), bytesOf(labels));
      pendingBytes += ids.byteLength + labels.byteLength;
      if (pendingBytes >= bufferBytes) flush();
      return sequences.length - 1;
    },
    read(index, ids, labels, at) {
      if (pendingBytes > 0) flush();
      const { offset, length } = entry(index);
      readInto(bytesOf(ids.subarray(at, at + length)), offset);
      readInto(bytesOf(labels.subarray(at, at + length)), offset + length * 4);
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
