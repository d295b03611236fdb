/**
 * Pictures as square tiles with the same number of tokens each, as Idefics3 and SmolVLM take them. Ids equal those of transformers'
 * Idefics3Processor and SmolVLMProcessor, which replace `<image>` by the same text and then tokenize it.
 */
import { z } from "zod";
import type { PictureFamilyWriter, Size } from "./picture-family.ts";

interface Tiles {
  /** Placeholder tokens of a picture, or of each of its tiles. */
  readonly tokens: number;
  /** Whether a large picture is cut into tiles, beside a small version of it all. */
  readonly splits: boolean;
  /** Before that, the longer side is scaled to this, in pixels; null: the picture keeps its size. */
  readonly longestEdge: number | null;
  /** Side of a tile, in pixels. */
  readonly tile: number;
}

const edge = z.object({ longest_edge: z.int().positive() });

export const tiles: PictureFamilyWriter<Tiles> = {
  processors: /^(?:Idefics3|SmolVLM)(?:ImageProcessor(?:Fast|Pil)?|Processor)$/,
  token: "<image>",
  shown: "<image>",
  settings: z
    .object({
      processor: z.object({ image_seq_len: z.int().positive().default(169) }),
      image: z.object({
        do_image_splitting: z.boolean().default(true),
        do_resize: z.boolean().default(true),
        size: edge.default({ longest_edge: 4 * 364 }),
        max_image_size: edge.default({ longest_edge: 364 }),
      }),
    })
    .transform(({ processor, image }) => ({
      tokens: processor.image_seq_len,
      splits: image.do_image_splitting,
      longestEdge: image.do_resize ? image.size.longest_edge : null,
      tile: image.max_image_size.longest_edge,
    })),
  spell(settings, size) {
    const tokens = tiles.token.repeat(settings.tokens);
    const { rows, columns } = tilesOf(settings, size);
    let text = "";
    for (let row = 1; row <= rows; row++) {
      for (let column = 1; column <= columns; column++) text += `${around}<row_${row}_col_${column}>${tokens}`;
      text += "\n";
    }
    return `${text}${rows > 0 ? "\n" : ""}${around}${whole}${tokens}${around}`;
  },
};

const [around, whole] = ["<fake_token_around_image>", "<global-img>"];
/** transformers scales no picture beyond this. */
const longest = 4096;

/** Rows and columns of a picture's tiles, with the roundings of transformers; none where it is shown as a whole only. */
function tilesOf({ splits, longestEdge, tile }: Tiles, given: Size): { rows: number; columns: number } {
  if (!splits) return { rows: 0, columns: 0 };
  const { width, height } = longestEdge === null ? given : below(scaled(given, longestEdge));
  const ratio = width / height;
  const count = (length: number): number => Math.ceil(length / tile);
  const [columns, rows] =
    width >= height
      ? [count(width), count(Math.trunc((count(width) * tile) / ratio))]
      : [count(Math.trunc(count(height) * tile * ratio)), count(height)];
  return rows > 1 || columns > 1 ? { rows, columns } : { rows: 0, columns: 0 };
}

/** The longer side as long as is said; the other one even, if it is rounded up. */
function scaled({ width, height }: Size, to: number): Size {
  const ratio = width / height;
  const even = (length: number): number => Math.max(1, length % 2 === 0 ? length : length + 1);
  return width >= height ? { width: to, height: even(Math.trunc(to / ratio)) } : { width: even(Math.trunc(to * ratio)), height: to };
}

function below({ width, height }: Size): Size {
  const ratio = width / height;
  if (width >= height && width > longest) return { width: longest, height: Math.max(1, Math.trunc(longest / ratio)) };
  if (height > width && height > longest) return { width: Math.max(1, Math.trunc(longest * ratio)), height: longest };
  return { width, height };
}
