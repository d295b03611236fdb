/** The tensors of a base's safetensors files, read in parts: a base may be larger than memory. */
import { type FileHandle, open, readdir } from "node:fs/promises";
import { join } from "node:path";
import type { LocatedTensor } from "./safetensors-header.ts";
import { locateTensors } from "./safetensors.ts";

export interface OpenTensors extends AsyncDisposable {
  names(): Iterable<string>;
  has(name: string): boolean;
  tensor(name: string): LocatedTensor;
  /** Values of a tensor of BF16, F16 or F32, from the given one on. Default: all of them. */
  values(name: string, start?: number, length?: number): Promise<Float32Array>;
  /** A tensor of 32-bit integers. */
  words(name: string): Promise<Int32Array>;
}

/** @throws PermanentError ADAPTER_UNREADABLE */
export async function openTensors(dir: string): Promise<OpenTensors> {
  const files: FileHandle[] = [];
  const found = new Map<string, { file: FileHandle; at: LocatedTensor }>();
  for (const shard of (await readdir(dir)).filter((name) => name.endsWith(".safetensors"))) {
    const path = join(dir, shard);
    const file = await open(path, "r");
    files.push(file);
    for (const at of await locateTensors(path, file)) found.set(at.name, { file, at });
  }
  const of = (name: string): { file: FileHandle; at: LocatedTensor } => {
    const tensor = found.get(name);
    if (tensor === undefined) throw new Error(`${dir} has no tensor ${name}`);
    return tensor;
  };
  const bytesOf = async (name: string, start: number, length: number, width: number): Promise<ArrayBuffer> => {
    const { file, at } = of(name);
    const bytes = new Uint8Array(Math.min(length * width, at.end - at.start - start * width));
    for (let done = 0; done < bytes.length;) {
      const { bytesRead } = await file.read(bytes, done, bytes.length - done, at.start + start * width + done);
      if (bytesRead === 0) throw new Error(`${dir}: tensor ${name} ends early`);
      done += bytesRead;
    }
    return bytes.buffer;
  };
  return {
    names: () => found.keys(),
    has: (name) => found.has(name),
    tensor: (name) => of(name).at,
    async values(name, start = 0, length = Number.MAX_SAFE_INTEGER / 8) {
      const { dtype } = of(name).at;
      const bytes = await bytesOf(name, start, length, dtype === "F32" ? 4 : 2);
      if (dtype === "F32") return new Float32Array(bytes);
      const words = new Uint16Array(bytes);
      return dtype === "BF16" ? ofBfloat16(words) : Float32Array.from(words, ofFloat16);
    },
    words: async (name) => new Int32Array(await bytesOf(name, 0, Number.MAX_SAFE_INTEGER / 8, 4)),
    async [Symbol.asyncDispose]() {
      await Promise.all(files.map((file) => file.close()));
    },
  };
}

/** The upper half of a float32. */
const ofBfloat16 = (words: Uint16Array): Float32Array => new Float32Array(Uint32Array.from(words, (word) => word << 16).buffer);

function ofFloat16(word: number): number {
  const [exponent, fraction] = [(word >> 10) & 31, word & 1023];
  const size =
    exponent === 0 ? fraction * 2 ** -24 : exponent === 31 ? (fraction ? Number.NaN : Infinity) : (1024 + fraction) * 2 ** (exponent - 25);
  return word & 0x8000 ? -size : size;
}
