/**
 * Pictures as one square of a fixed size, so that all have the same number of tokens, as LLaVA 1.5 takes them. Ids equal those of transformers'
 * LlavaProcessor with the image processor of CLIP.
 */
import { z } from "zod";
import type { PictureFamilyWriter } from "./picture-family.ts";

interface Square {
  /** Placeholder tokens of a picture. */
  readonly tokens: number;
}

const side = z.int().positive();
/** What every picture is scaled or cut to; without it pictures keep shapes that the tower does not take. */
const fixed = z.object({ width: side, height: side });

export const square: PictureFamilyWriter<Square> = {
  processors: /^(?:LlavaProcessor|CLIPImageProcessor(?:Fast|Pil)?)$/,
  token: "<image>",
  shown: "<image>",
  settings: z
    .object({
      processor: z.object({
        patch_size: side,
        // Tokens of the tower that stand for no patch, such as CLIP's first, which the strategy "default" leaves out.
        num_additional_image_tokens: z.int().nonnegative().default(0),
        vision_feature_select_strategy: z.enum(["default", "full"]).nullish(),
        image_token: z.literal("<image>").default("<image>"),
      }),
      image: z.union([
        z
          .object({
            do_center_crop: z.literal(true).default(true),
            crop_size: z
              .union([fixed, side.transform((length) => ({ width: length, height: length }))])
              .default({ width: 224, height: 224 }),
          })
          .transform(({ crop_size }) => crop_size),
        z.object({ do_center_crop: z.literal(false), do_resize: z.literal(true).default(true), size: fixed }).transform(({ size }) => size),
      ]),
    })
    .transform(({ processor, image: { width, height } }) => {
      const { patch_size: patch, num_additional_image_tokens: more, vision_feature_select_strategy: strategy } = processor;
      const patches = Math.floor(width / patch) * Math.floor(height / patch);
      return { tokens: patches + more - (strategy === "default" ? 1 : 0) };
    }),
  spell: ({ tokens }) => square.token.repeat(tokens),
};
