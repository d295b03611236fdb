/** The safetensors format, as far as an adapter needs it: header and a scan of the values. */
import { open } from "node:fs/promises";
import { PermanentError } from "@loraline/runtime";
import { z } from "zod";

export interface Tensor {
  name: string;
  /** `BF16`, `F16`, `F32` … */
  dtype: string;
  shape: readonly number[];
}

export interface ScannedTensor extends Tensor {
  /** Values that are NaN or infinite. */
  notFinite: number;
  allZero: boolean;
}

const header = z.record(
  z.string(),
  z.object({
    dtype: z.string(),
    shape: z.array(z.int().nonnegative()),
    data_offsets: z.tuple([z.int().nonnegative(), z.int().nonnegative()]),
  }),
);

/** Headers of real adapters have some hundred KB. */
const longestHeader = 16 * 1024 * 1024;

interface Located extends Tensor {
  /** Bytes in the file. */
  start: number;
  end: number;
}

const broken = (path: string, what: string): PermanentError =>
  new PermanentError("ADAPTER_UNREADABLE", `${path} is not a valid safetensors file: ${what}`, { param: path.split("/").at(-1) });

async function locate(path: string, file: Awaited<ReturnType<typeof open>>): Promise<Located[]> {
  const { size } = await file.stat();
  const prefix = Buffer.alloc(8);
  if (size < 8) throw broken(path, `it has ${size} bytes`);
  await file.read(prefix, 0, 8, 0);
  const length = Number(prefix.readBigUInt64LE());
  if (length > longestHeader || 8 + length > size) throw broken(path, `its header would have ${length} bytes, the file has ${size}`);
  const raw = Buffer.alloc(length);
  await file.read(raw, 0, length, 8);
  let parsed: z.infer<typeof header>;
  try {
    const { __metadata__: _metadata, ...tensors } = JSON.parse(raw.toString("utf8")) as Record<string, unknown>;
    parsed = header.parse(tensors);
  } catch (error) {
    throw broken(path, `its header cannot be read (${(error as Error).message})`);
  }
  return Object.entries(parsed).map(
    ([
      name,
      {
        dtype,
        shape,
        data_offsets: [from, to],
      },
    ]) => {
      const [start, end] = [8 + length + from, 8 + length + to];
      if (end < start || end > size) throw broken(path, `tensor ${name} would end at byte ${end}, the file has ${size}`);
      return { name, dtype, shape, start, end };
    },
  );
}

/** Names, types and shapes; reads nothing but the header. */
export async function readTensors(path: string): Promise<Tensor[]> {
  const file = await open(path, "r");
  try {
    return (await locate(path, file)).map(({ name, dtype, shape }) => ({ name, dtype, shape }));
  } finally {
    await file.close();
  }
}

/** Reads every value once. */
export async function scanTensors(path: string): Promise<ScannedTensor[]> {
  const file = await open(path, "r");
  try {
    const scanned: ScannedTensor[] = [];
    for (const { name, dtype, shape, start, end } of await locate(path, file)) {
      const bytes = new Uint8Array(end - start);
      await file.read(bytes, 0, bytes.length, start);
      scanned.push({ name, dtype, shape, ...scanValues(dtype, bytes) });
    }
    return scanned;
  } finally {
    await file.close();
  }
}

/** Exponent bits all set means NaN or infinite; everything but the sign clear means zero. For the three types adapters come in. */
const exponents: Record<string, { words: (bytes: Uint8Array) => Uint16Array | Uint32Array; exponent: number; sign: number }> = {
  BF16: { words: (bytes) => new Uint16Array(bytes.buffer), exponent: 0x7f80, sign: 0x8000 },
  F16: { words: (bytes) => new Uint16Array(bytes.buffer), exponent: 0x7c00, sign: 0x8000 },
  F32: { words: (bytes) => new Uint32Array(bytes.buffer), exponent: 0x7f800000, sign: 0x80000000 },
};

function scanValues(dtype: string, bytes: Uint8Array): { notFinite: number; allZero: boolean } {
  const type = exponents[dtype];
  if (type === undefined || bytes.length % (dtype === "F32" ? 4 : 2) !== 0) return { notFinite: 0, allZero: false };
  const { words, exponent, sign } = type;
  let notFinite = 0;
  let allZero = true;
  for (const word of words(bytes)) {
    if ((word & exponent) === exponent) notFinite += 1;
    if ((word & ~sign) !== 0) allZero = false;
  }
  return { notFinite, allZero };
}
