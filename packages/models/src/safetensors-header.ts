/** The header of a safetensors file: names, types and shapes, and where in the file the values are. */
import { z } from "zod";

export interface Tensor {
  name: string;
  /** `BF16`, `F16`, `F32` … */
  dtype: string;
  shape: readonly number[];
}

export interface LocatedTensor extends Tensor {
  /** Bytes in the file. */
  start: number;
  end: number;
}

/** Bytes before the header: its length. */
export const safetensorsPrefix = 8;
/** Largest header, in bytes. Headers of real adapters have some hundred KB. */
export const longestSafetensorsHeader = 16 * 1024 * 1024;

const bytesPer: Readonly<Record<string, number>> = { F64: 8, I64: 8, U64: 8, F32: 4, I32: 4, U32: 4, F16: 2, BF16: 2, I16: 2, U16: 2 };

const header = z.record(
  z.string(),
  z.object({
    dtype: z.string(),
    shape: z.array(z.int().nonnegative()),
    data_offsets: z.tuple([z.int().nonnegative(), z.int().nonnegative()]),
  }),
);

/**
 * Pure: how long the header is.
 * @param prefix - the file's first 8 bytes, or fewer when it has no more.
 * @param size - of the file.
 * @throws Error that says what is wrong with the file.
 */
export function safetensorsHeaderLength(prefix: Uint8Array, size: number): number {
  if (prefix.byteLength < safetensorsPrefix) throw new Error(`it has ${prefix.byteLength} bytes`);
  const length = Number(new DataView(prefix.buffer, prefix.byteOffset, safetensorsPrefix).getBigUint64(0, true));
  if (length > longestSafetensorsHeader || safetensorsPrefix + length > size) {
    throw new Error(`its header would have ${length} bytes, the file has ${size}`);
  }
  return length;
}

/**
 * Pure.
 * @param text - the header's bytes, without the prefix.
 * @throws Error that says what is wrong with the file.
 */
export function parseSafetensorsHeader(text: Uint8Array, size: number): LocatedTensor[] {
  let parsed: z.infer<typeof header>;
  try {
    const { __metadata__: _metadata, ...tensors } = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(text)) as Record<
      string,
      unknown
    >;
    parsed = header.parse(tensors);
  } catch (error) {
    throw new Error(`its header cannot be read (${(error as Error).message})`, { cause: error });
  }
  const first = safetensorsPrefix + text.byteLength;
  return Object.entries(parsed).map(
    ([
      name,
      {
        dtype,
        shape,
        data_offsets: [from, to],
      },
    ]) => {
      const [start, end] = [first + from, first + to];
      if (end < start || end > size) throw new Error(`tensor ${name} would end at byte ${end}, the file has ${size}`);
      const width = bytesPer[dtype];
      if (width !== undefined && shape.reduce((product, one) => product * one, width) !== to - from) {
        throw new Error(`tensor ${name} has ${to - from} bytes, which is not [${shape.join(", ")}] of ${dtype}`);
      }
      return { name, dtype, shape, start, end };
    },
  );
}
