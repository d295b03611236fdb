/** The safetensors format on the disk: header and a scan of the values. */
import { readFileSync, statSync } from "node:fs";
import { open } from "node:fs/promises";
import {
  type LocatedTensor,
  parseSafetensorsHeader,
  safetensorsHeaderLength,
  safetensorsPrefix,
  type Tensor,
} from "./safetensors-header.ts";
import { PermanentError } from "@loraline/runtime";

interface ScannedTensor extends Tensor {
  /** Values that are NaN or infinite. */
  notFinite: number;
  allZero: boolean;
}

/** Where in a file each tensor is. */
export async function locateTensors(path: string, file: Awaited<ReturnType<typeof open>>): Promise<LocatedTensor[]> {
  const { size } = await file.stat();
  try {
    const prefix = Buffer.alloc(Math.min(safetensorsPrefix, size));
    await file.read(prefix, 0, prefix.length, 0);
    const header = Buffer.alloc(safetensorsHeaderLength(prefix, size));
    await file.read(header, 0, header.length, safetensorsPrefix);
    return parseSafetensorsHeader(header, size);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== undefined) throw error;
    throw unreadable(path.split("/").at(-1) ?? path, error as Error);
  }
}

const unreadable = (name: string, why: Error): PermanentError =>
  new PermanentError("ADAPTER_UNREADABLE", `${name} is not a valid safetensors file: ${why.message}`, { param: name, cause: why });

/** Names, types and shapes; reads nothing but the header. */
export async function readTensors(path: string): Promise<Tensor[]> {
  const file = await open(path, "r");
  try {
    return (await locateTensors(path, file)).map(({ name, dtype, shape }) => ({ name, dtype, shape }));
  } finally {
    await file.close();
  }
}

/** Files up to this size are read at once, larger ones tensor by tensor. */
const smallBytes = 64 * 1024;

/** Reads every value once. */
export async function scanTensors(path: string): Promise<ScannedTensor[]> {
  const { size } = statSync(path);
  if (size <= smallBytes) return scanWhole(path, readFileSync(path));
  const file = await open(path, "r");
  try {
    const tensors = await locateTensors(path, file);
    // One buffer for all tensors: allocating and clearing one for each takes longer than reading.
    const buffer = new ArrayBuffer(Math.max(0, ...tensors.map(({ start, end }) => end - start)));
    const scanned: ScannedTensor[] = [];
    for (const { name, dtype, shape, start, end } of tensors) {
      const bytes = new Uint8Array(buffer, 0, end - start);
      await file.read(bytes, 0, bytes.length, start);
      scanned.push({ name, dtype, shape, ...scanValues(dtype, bytes) });
    }
    return scanned;
  } finally {
    await file.close();
  }
}

function scanWhole(path: string, bytes: Buffer): ScannedTensor[] {
  let tensors: LocatedTensor[];
  try {
    const length = safetensorsHeaderLength(bytes.subarray(0, safetensorsPrefix), bytes.length);
    tensors = parseSafetensorsHeader(bytes.subarray(safetensorsPrefix, safetensorsPrefix + length), bytes.length);
  } catch (error) {
    throw unreadable(path.split("/").at(-1) ?? path, error as Error);
  }
  return tensors.map(({ name, dtype, shape, start, end }) => {
    // Copied, because a typed array's words must be aligned in their buffer.
    return { name, dtype, shape, ...scanValues(dtype, new Uint8Array(bytes.subarray(start, end))) };
  });
}

/** Exponent bits all set means NaN or infinite; everything but the sign clear means zero. For the three types adapters come in. */
const exponents: Record<string, { words: (bytes: Uint8Array) => Uint16Array | Uint32Array; exponent: number; sign: number }> = {
  BF16: { words: (bytes) => new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2), exponent: 0x7f80, sign: 0x8000 },
  F16: { words: (bytes) => new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2), exponent: 0x7c00, sign: 0x8000 },
  F32: { words: (bytes) => new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4), exponent: 0x7f800000, sign: 0x80000000 },
};

function scanValues(dtype: string, bytes: Uint8Array): { notFinite: number; allZero: boolean } {
  const type = exponents[dtype];
  if (type === undefined || bytes.length % (dtype === "F32" ? 4 : 2) !== 0) return { notFinite: 0, allZero: false };
  const { words, exponent, sign } = type;
  const values = words(bytes);
  let notFinite = 0;
  let bits = 0;
  // A loop by index: an iterator takes five times as long, and there are millions of values.
  for (let i = 0; i < values.length; i++) {
    const word = values[i]!;
    bits |= word;
    if ((word & exponent) === exponent) notFinite += 1;
  }
  return { notFinite, allZero: (bits & ~sign) === 0 };
}
