/** Pure: 4-bit weights as GPTQ's and AWQ's tools store them. A module `x` has `x.qweight`, `x.qzeros`, `x.scales` and, of GPTQ, `x.g_idx`. */
import type { Tensor } from "./safetensors-header.ts";

/** How the weights of a base are packed. Eight values stand in each word of 32 bits. */
export interface Packing {
  method: "gptq" | "awq";
  /** GPTQ's first format stores the zero point less one. */
  zeroOffset: 0 | 1;
}

/** From a base's config.json. undefined: the weights are not packed so. */
export function packingOf(config: unknown): Packing | undefined {
  const stored = (config as { quantization_config?: Record<string, unknown> | null } | null)?.quantization_config;
  const method = typeof stored?.["quant_method"] === "string" ? stored["quant_method"].toLowerCase() : undefined;
  if ((method !== "gptq" && method !== "awq") || (stored?.["bits"] ?? stored?.["w_bit"]) !== 4) return undefined;
  return { method, zeroOffset: method === "gptq" && stored?.["checkpoint_format"] !== "gptq_v2" ? 1 : 0 };
}

const perWord = 8;
/** Place in a word of each of eight values that follow each other, in AWQ's packing: its kernels read them so. */
const awqPlaces = [0, 4, 1, 5, 2, 6, 3, 7];

const packed = /^(.+)\.(?:qweight|qzeros|scales|g_idx)$/;

/** The tensors that the base would have unquantised: a `weight` [outputs, inputs] instead of the parts of each packed module. */
export function unpackedTensors(tensors: readonly Tensor[], { method }: Packing): Tensor[] {
  return tensors.flatMap((tensor): Tensor[] => {
    const module = packed.exec(tensor.name)?.[1];
    if (module === undefined) return [tensor];
    if (!tensor.name.endsWith(".qweight")) return [];
    const [rows = 0, columns = 0] = tensor.shape;
    const shape = method === "gptq" ? [columns, rows * perWord] : [columns * perWord, rows];
    return [{ name: `${module}.weight`, dtype: "I4", shape }];
  });
}

export interface PackedModule {
  packing: Packing;
  inputs: number;
  outputs: number;
  qweight: Int32Array;
  qzeros: Int32Array;
  /** [groups, outputs] */
  scales: Float32Array;
  /** Group of each input; absent: they follow each other. */
  groups?: Int32Array | undefined;
}

/** A weight, in the units of the unquantised one, and its step: the distance between two neighbouring values. */
export function unpackedWeight(module: PackedModule, output: number, input: number): { value: number; step: number } {
  const { packing, inputs, outputs, qweight, qzeros, scales, groups } = module;
  const group = groups?.[input] ?? Math.floor(input / (inputs / (scales.length / outputs)));
  const columns = outputs / perWord;
  const isAwq = packing.method === "awq";
  const placeOf = (index: number): number => (isAwq ? (awqPlaces[index % perWord] as number) : index % perWord);
  const nibble = (word: number | undefined, place: number): number => ((word ?? 0) >>> (4 * place)) & 15;
  const whole = isAwq
    ? nibble(qweight[input * columns + Math.floor(output / perWord)], placeOf(output))
    : nibble(qweight[Math.floor(input / perWord) * outputs + output], input % perWord);
  const zero = nibble(qzeros[group * columns + Math.floor(output / perWord)], placeOf(output)) + packing.zeroOffset;
  const step = scales[group * outputs + output] ?? Number.NaN;
  return { value: (whole - zero) * step, step };
}
