/**
 * How a base's processor writes a picture into the text: as how many placeholder tokens, and with what around them. Ids equal those of
 * transformers' Idefics3Processor and SmolVLMProcessor, which replace `<image>` by the same text and then tokenize it.
 */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";

export interface Vision {
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
const imageProcessor = z.object({
  do_image_splitting: z.boolean().default(true),
  do_resize: z.boolean().default(true),
  size: edge.default({ longest_edge: 4 * 364 }),
  max_image_size: edge.default({ longest_edge: 364 }),
});
const processor = z.object({ image_seq_len: z.int().positive().default(169) });

const known = /^(?:Idefics3|SmolVLM)(?:ImageProcessor(?:Fast|Pil)?|Processor)$/;
/** Tokens that the processor's text consists of, beside line ends. */
export const imageToken = "<image>";
const [around, whole] = ["<fake_token_around_image>", "<global-img>"];
/** transformers scales no picture beyond this. */
const longest = 4096;

/** @returns undefined: the base takes no pictures, or its processor is another one. */
export async function readVision(dir: string): Promise<Vision | undefined> {
  const read = async (name: string): Promise<Record<string, unknown>> => {
    try {
      const value: unknown = JSON.parse(await readFile(join(dir, name), "utf8"));
      return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {};
    } catch {
      return {};
    }
  };
  const [whole, image] = await Promise.all([read("processor_config.json"), read("preprocessor_config.json")]);
  // Newer files have the image processor within the processor's.
  const own = { ...image, ...(whole.image_processor as object | undefined) } as Record<string, unknown>;
  const names = [whole.processor_class, own.processor_class, own.image_processor_type].filter((name) => typeof name === "string");
  if (names.length === 0 || !names.every((name) => known.test(name))) return undefined;
  const [pictures, text] = [imageProcessor.safeParse(own), processor.safeParse(whole)];
  if (!pictures.success || !text.success) return undefined;
  const { do_image_splitting, do_resize, size, max_image_size } = pictures.data;
  return {
    tokens: text.data.image_seq_len,
    splits: do_image_splitting,
    longestEdge: do_resize ? size.longest_edge : null,
    tile: max_image_size.longest_edge,
  };
}

interface Size {
  readonly width: number;
  readonly height: number;
}

/** @returns the text that stands for a picture. */
export function spellPicture(vision: Vision, size: Size): string {
  const tokens = imageToken.repeat(vision.tokens);
  const { rows, columns } = tilesOf(vision, size);
  let text = "";
  for (let row = 1; row <= rows; row++) {
    for (let column = 1; column <= columns; column++) text += `${around}<row_${row}_col_${column}>${tokens}`;
    text += "\n";
  }
  return `${text}${rows > 0 ? "\n" : ""}${around}${whole}${tokens}${around}`;
}

/** Rows and columns of a picture's tiles, with the roundings of transformers; none where it is shown as a whole only. */
function tilesOf({ splits, longestEdge, tile }: Vision, given: Size): { rows: number; columns: number } {
  if (!splits) return { rows: 0, columns: 0 };
  const { width, height } = longestEdge === null ? given : below(scaled(given, longestEdge));
  const ratio = width / height;
  const tiles = (length: number): number => Math.ceil(length / tile);
  const [columns, rows] =
    width >= height
      ? [tiles(width), tiles(Math.trunc((tiles(width) * tile) / ratio))]
      : [tiles(Math.trunc(tiles(height) * tile * ratio)), tiles(height)];
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
