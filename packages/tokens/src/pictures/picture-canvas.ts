/**
 * Pictures on a canvas of tiles whose shape is nearest to theirs, as InternVL takes them in transformers' layout. Each tile has the same number of
 * tokens; several are followed by a small version of the whole. Ids equal those of transformers' InternVLProcessor.
 */
import { z } from "zod";
import type { PictureFamilyWriter, Size } from "./picture-family.ts";

interface Canvas {
  /** Placeholder tokens of a tile. */
  readonly tokens: number;
  /** A tile, in pixels. */
  readonly tile: Size;
  /** Tiles of a canvas, the small version not counted. */
  readonly least: number;
  readonly most: number;
}

const count = z.int().positive();

export const canvas: PictureFamilyWriter<Canvas> = {
  processors: /^(?:InternVLProcessor|GotOcr2ImageProcessor(?:Fast|Pil)?)$/,
  token: "<IMG_CONTEXT>",
  shown: "<IMG_CONTEXT>",
  // `crop_to_patches` is not read: InternVLProcessor makes tiles whatever the file of its image processor says.
  settings: z
    .object({
      processor: z.object({ image_seq_length: count.default(256) }),
      image: z.object({
        size: z.object({ width: count, height: count }).default({ width: 384, height: 384 }),
        min_patches: count.default(1),
        max_patches: count.default(12),
      }),
    })
    .transform(({ processor, image }) => ({
      tokens: processor.image_seq_length,
      tile: image.size,
      least: image.min_patches,
      most: image.max_patches,
    })),
  spell(settings, size) {
    const tiles = tilesOf(settings, size);
    return `<img>${canvas.token.repeat(settings.tokens * (tiles > 1 ? tiles + 1 : 1))}</img>`;
  },
};

/** Of canvases that are equally near to the picture's shape, the last one that it fills by more than half. */
function tilesOf({ tile, least, most }: Canvas, { width, height }: Size): number {
  const ratio = width / height;
  let [nearest, best] = [Number.POSITIVE_INFINITY, 1];
  for (const { columns, rows } of canvasesOf(least, most)) {
    const distance = Math.abs(ratio - columns / rows);
    const fills = width * height > 0.5 * tile.width * tile.height * columns * rows;
    if (distance < nearest || (distance === nearest && fills)) [nearest, best] = [distance, columns * rows];
  }
  return best;
}

/** In the order of transformers, which decides between equals. */
function canvasesOf(least: number, most: number): { columns: number; rows: number }[] {
  const sides = Array.from({ length: most }, (_, index) => index + 1);
  return sides
    .flatMap((columns) => sides.map((rows) => ({ columns, rows })))
    .filter(({ columns, rows }) => columns * rows >= least && columns * rows <= most)
    .sort((a, b) => a.columns * a.rows - b.columns * b.rows);
}
