import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { picturePartsOf } from "./picture-parts.ts";

let dir = "";
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "loraline-pictures-"));
});
afterAll(() => rm(dir, { recursive: true, force: true }));

const written = async (name: string, content: string): Promise<string> => {
  await writeFile(join(dir, name), content, "latin1");
  return join(dir, name);
};

it("gives each picture as what it is, whatever its name says", async () => {
  const files = await Promise.all([
    written("a.jpg", "\x89PNG\r\n\x1a\n"),
    written("b.png", "\xff\xd8\xff\xe0"),
    written("c", "RIFF\x24\0\0\0WEBPVP8 "),
    written("d", "GIF89a"),
  ]);
  const urls = (await picturePartsOf(files)).map((part) => part.image_url.url);
  expect(urls.map((url) => /^data:([^;]+);base64,/.exec(url)?.[1])).toEqual(["image/png", "image/jpeg", "image/webp", "image/gif"]);
  expect(urls[3]).toBe(`data:image/gif;base64,${Buffer.from("GIF89a").toString("base64")}`);
});

it("names the file that is none, or is not there", async () => {
  const text = await written("notes.png", "a circle");
  await expect(picturePartsOf([text])).rejects.toMatchObject({
    code: "PICTURE_UNSUPPORTED",
    message: expect.stringContaining(text) as string,
  });
  await expect(picturePartsOf([join(dir, "no.png")])).rejects.toMatchObject({ code: "FILE_MISSING" });
});
