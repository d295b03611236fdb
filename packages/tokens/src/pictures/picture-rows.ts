/**
 * Pictures in their own shape as rows of tokens, with a token at the end of each row, as Mistral 3 takes them. Ids equal those of transformers'
 * PixtralProcessor.
 */
import { z } from "zod";
import type { PictureFamilyWriter } from "./picture-family.ts";

interface Rows {
  /** Side of what a token stands for, in pixels. */
  readonly side: number;
  /** A larger picture is scaled until it fits into a square of so many pixels a side. */
  readonly longestEdge: number;
}

const count = z.int().positive();
const [rowEnd, pictureEnd] = ["[IMG_BREAK]", "[IMG_END]"];

export const rows: PictureFamilyWriter<Rows> = {
  processors: /^Pixtral(?:Processor|ImageProcessor(?:Fast|Pil)?)$/,
  token: "[IMG]",
  shown: "[IMG]",
  // The image processor's `patch_size` is not read: PixtralProcessor tells it another one.
  settings: z
    .object({
      processor: z.object({
        patch_size: count.default(16),
        spatial_merge_size: count.default(1),
        image_token: z.literal("[IMG]").default("[IMG]"),
        image_break_token: z.literal(rowEnd).default(rowEnd),
        image_end_token: z.literal(pictureEnd).default(pictureEnd),
      }),
      image: z.object({
        // Without it sides could be no multiples of a token's.
        do_resize: z.literal(true).default(true),
        size: z.object({ longest_edge: count }).default({ longest_edge: 1024 }),
      }),
    })
    .transform(({ processor, image }) => ({
      side: processor.patch_size * processor.spatial_merge_size,
      longestEdge: image.size.longest_edge,
    })),
  spell({ side, longestEdge }, { width, height }) {
    const shrink = Math.max(1, height / longestEdge, width / longestEdge);
    const [columns, lines] = [width, height].map((length) => Math.max(1, Math.ceil(Math.floor(length / shrink) / side))) as [
      number,
      number,
    ];
    return Array.from({ length: lines }, () => rows.token.repeat(columns)).join(rowEnd) + pictureEnd;
  },
};
