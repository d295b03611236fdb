/**
 * Pictures as a grid of patches, of which some side by side are one token: as many as the picture has room for, as Qwen2-VL and its followers take
 * them. Ids equal those of transformers' Qwen2VLProcessor, Qwen2_5_VLProcessor and Qwen3VLProcessor.
 */
import { z } from "zod";
import type { PictureFamilyWriter, Size } from "./picture-family.ts";

interface Grid {
  /** Side of what a token stands for, in pixels. */
  readonly side: number;
  /** A picture is scaled until it has at least and at most so many pixels. */
  readonly least: number;
  readonly most: number;
}

const pixels = z.int().positive().nullish();

export const grid: PictureFamilyWriter<Grid> = {
  processors: /^(?:Qwen2VLImageProcessor(?:Fast|Pil)?|Qwen(?:2|2_5_|3)VLProcessor)$/,
  token: "<|image_pad|>",
  shown: "<|vision_start|><|image_pad|><|vision_end|>",
  settings: z
    .object({
      image: z.object({
        // Without it sides could be no multiples of a token's.
        do_resize: z.literal(true).default(true),
        patch_size: z.int().positive().default(14),
        merge_size: z.int().positive().default(2),
        min_pixels: pixels,
        max_pixels: pixels,
        size: z.object({ shortest_edge: pixels, longest_edge: pixels }).nullish(),
      }),
    })
    .transform(({ image: { patch_size, merge_size, min_pixels, max_pixels, size } }) => ({
      side: patch_size * merge_size,
      least: min_pixels ?? size?.shortest_edge ?? 56 * 56,
      most: max_pixels ?? size?.longest_edge ?? 28 * 28 * 1280,
    })),
  spell: (settings, size) => grid.token.repeat(tokensOf(settings, size)),
};

/** With the roundings of transformers' `smart_resize`. */
function tokensOf({ side, least, most }: Grid, { width, height }: Size): number {
  let [rows, columns] = [roundHalfEven(height / side), roundHalfEven(width / side)];
  if (rows * columns * side * side > most) {
    const shrink = Math.sqrt((height * width) / most);
    [rows, columns] = [height, width].map((length) => Math.max(1, Math.floor(length / shrink / side))) as [number, number];
  } else if (rows * columns * side * side < least) {
    const grow = Math.sqrt(least / (height * width));
    [rows, columns] = [height, width].map((length) => Math.ceil((length * grow) / side)) as [number, number];
  }
  return rows * columns;
}

/** Python's `round`. */
function roundHalfEven(value: number): number {
  const floor = Math.floor(value);
  return value - floor === 0.5 ? floor + (floor % 2) : Math.round(value);
}
