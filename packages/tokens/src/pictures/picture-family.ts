import type { z } from "zod";

/** What a family of processors does with a picture. */
export interface PictureFamilyWriter<Settings> {
  /** Names of its processors and their image processors. */
  readonly processors: RegExp;
  /** The control token that stands for a picture in a rendered conversation. */
  readonly token: string;
  /** What a template that takes texts is given for a picture. It is what vLLM gives it. */
  readonly shown: string;
  /** From the files of processor and image processor. */
  readonly settings: z.ZodType<Settings, unknown>;
  /** @returns what `token` is replaced by. */
  spell(settings: Settings, size: Size): string;
}

export interface Size {
  readonly width: number;
  readonly height: number;
}
