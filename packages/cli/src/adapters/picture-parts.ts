/** Pictures of a question, as OpenAI's parts with data URLs. */
import { readFile } from "node:fs/promises";
import { exitCodes, Failure } from "../failure.ts";

type PicturePart = { type: "image_url"; image_url: { url: string } };

/** How files of each type begin, in Latin-1. */
const beginnings = {
  png: /^\x89PNG/,
  jpeg: /^\xff\xd8\xff/,
  webp: /^RIFF[^]{4}WEBP/,
  gif: /^GIF8/,
};

/** @throws Failure FILE_MISSING, PICTURE_UNSUPPORTED */
export const picturePartsOf = (files: readonly string[]): Promise<PicturePart[]> =>
  Promise.all(
    files.map(async (file) => {
      const bytes = await readFile(file).catch(() => {
        throw new Failure(exitCodes.usage, "FILE_MISSING", `there is no file ${file}, or it cannot be read.`);
      });
      const head = bytes.subarray(0, 16).toString("latin1");
      const [type] = Object.entries(beginnings).find(([, begins]) => begins.test(head)) ?? [];
      if (type === undefined) throw new Failure(exitCodes.usage, "PICTURE_UNSUPPORTED", `${file} is no PNG, JPEG, WebP or GIF.`);
      return { type: "image_url", image_url: { url: `data:image/${type};base64,${bytes.toString("base64")}` } };
    }),
  );
