/** How a base's processor writes a picture into the text: as how many placeholder tokens, and with what around them. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { type PictureFamily, picturesOf } from "@loraline/models";
import { canvas } from "./picture-canvas.ts";
import type { Size } from "./picture-family.ts";
import { grid } from "./picture-grid.ts";
import { rows } from "./picture-rows.ts";
import { square } from "./picture-square.ts";
import { tiles } from "./picture-tiles.ts";

const families = { idefics3: tiles, internvl: canvas, llava: square, mistral3: rows, "qwen-vl": grid } satisfies Record<
  PictureFamily,
  unknown
>;

/** JSON, since it decides which tokens are equal. */
export interface Vision {
  readonly family: PictureFamily;
  readonly token: string;
  readonly shown: string;
  readonly settings: object;
}

/** @returns undefined: the base takes no pictures, or in a way that is not known here. */
export async function readVision(dir: string): Promise<Vision | undefined> {
  const read = async (name: string): Promise<Record<string, unknown> | undefined> => {
    try {
      const value: unknown = JSON.parse(await readFile(join(dir, name), "utf8"));
      return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : undefined;
    } catch {
      return undefined;
    }
  };
  const names = ["config.json", "processor_config.json", "preprocessor_config.json"];
  const [config, processor = {}, apart] = await Promise.all(names.map(read));
  // Newer files have the image processor within the processor's.
  const image: Record<string, unknown> = { ...apart, ...(processor["image_processor"] as object | undefined) };
  const named = [processor["processor_class"], image["processor_class"], image["image_processor_type"]].filter(
    (name) => typeof name === "string",
  );
  const family = (Object.keys(families) as PictureFamily[]).find((each) => named.every((name) => families[each].processors.test(name)));
  if (named.length === 0 || family === undefined) return undefined;
  // Other architectures have the same processor, and are not trained or served with pictures. A folder with a tokenizer only says nothing of it.
  if (config !== undefined && picturesOf(config) !== family) return undefined;
  const { token, shown, settings } = families[family];
  const parsed = settings.safeParse({ processor, image });
  return parsed.success ? { family, token, shown, settings: parsed.data } : undefined;
}

/** @returns the text that stands for a picture. */
export const spellPicture = ({ family, settings }: Vision, size: Size): string => families[family].spell(settings as never, size);
