/** Pictures of rows, in every spelling and from every place, as they come out of a whole file. */
import { buffer } from "node:stream/consumers";
import { crc32, deflateSync, gzipSync } from "node:zlib";
import { type PictureEntry, pictureLimits, pictureMark, record, type Rec, type Rejection } from "@loraline/contracts";
import { digestOf } from "@loraline/objects";
import { PermanentError, RetryLaterError } from "@loraline/runtime";
import fc from "fast-check";
import { zipSync } from "fflate";
import sharp from "sharp";
import { pack } from "tar-stream";
import { describe, expect, it } from "vitest";
import { readRecords } from "../read-records.ts";
import { createReport } from "../report/dataset-report.ts";
import { judgePicture, thumbnailOf } from "./judge-picture.ts";
import { createPictureTaker } from "./take-pictures.ts";

const square = (colour: string, width = 24, height = 16) => sharp({ create: { width, height, channels: 3, background: colour } });
const red = await square("red").png().toBuffer();
const blue = await square("blue").jpeg().toBuffer();
const green = await square("green").webp().toBuffer();
const grey = await square("grey").gif().toBuffer();
/** Taken with the camera on its side: stored as 24 × 16, shown as 16 × 24. */
const turned = await square("blue").withMetadata({ orientation: 6 }).jpeg().toBuffer();
const dataUrl = (bytes: Buffer, type = "image/png"): string => `data:${type};base64,${bytes.toString("base64")}`;

async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}
type Fetch = NonNullable<NonNullable<Parameters<typeof createPictureTaker>[0]>["fetch"]>;

async function read(bytes: Uint8Array, fetch?: Fetch, name?: string) {
  const put: string[] = [];
  const taker = createPictureTaker({ ...(fetch && { fetch }), put: async ({ digest }) => void put.push(digest), thumbnails: 64 });
  const records: Rec[] = [];
  const rejections: Rejection[] = [];
  const reading = await readRecords(once(bytes), { maxRowBytes: 8e6, pictures: taker, name });
  for await (const batch of reading?.batches ?? []) {
    records.push(...batch.records);
    rejections.push(...batch.rejections);
  }
  for (const each of records) expect(record.parse(each)).toEqual(each);
  return { records, rejections, put, thumbnails: taker.thumbnails, entries: [...taker.entries.values()], notes: reading?.notes ?? [] };
}
const jsonl = (...rows: object[]): Buffer => Buffer.from(rows.map((row) => `${JSON.stringify(row)}\n`).join(""));
const turn = (role: string, content: unknown) => ({ role, content });

describe("a row shows its picture", () => {
  const url = dataUrl(red);
  const of = (bytes: Buffer, type: string, more: object = {}) => ({
    type: "image",
    ref: digestOf(bytes),
    bytes: bytes.length,
    media_type: type,
    width: 24,
    height: 16,
    ...more,
  });
  const asked = "What is it?";
  it.each<[string, object, string]>([
    ["image_url and caption", { image_url: url, caption: "A red square." }, "Describe this image."],
    ["image and text", { image: url, text: "A red square." }, "Describe this image."],
    ["image, question and answer", { image: url, question: asked, answer: "A red square." }, asked],
    ["a question with the mark", { image: url, question: `<image>\n${asked}`, answer: "A red square." }, asked],
    ["a mark at the end", { image: url, question: `${asked}\n<image>`, answer: "A red square." }, `${asked}${pictureMark}`],
    [
      "LLaVA",
      {
        image: url,
        conversations: [
          { from: "human", value: `<image>\n${asked}` },
          { from: "gpt", value: "A red square." },
        ],
      },
      asked,
    ],
    [
      "ShareGPT with images, marked in the middle",
      {
        images: [url],
        conversations: [
          { from: "human", value: "Look: <image> What is it?" },
          { from: "gpt", value: "A red square." },
        ],
      },
      `Look: ${pictureMark} What is it?`,
    ],
    [
      "OpenAI's parts",
      {
        messages: [
          turn("user", [
            { type: "text", text: asked },
            { type: "image_url", image_url: { url } },
          ]),
          turn("assistant", "A red square."),
        ],
      },
      `${asked}${pictureMark}`,
    ],
    [
      "parts with a character that looks like the mark",
      {
        messages: [
          turn("user", [
            { type: "image_url", image_url: url },
            { type: "text", text: `${asked}${pictureMark}` },
          ]),
          turn("assistant", "x"),
        ],
      },
      asked,
    ],
    ["a preference", { image: url, prompt: asked, chosen: "A red square.", rejected: "A cat." }, asked],
    [
      "a preference with images and a mark",
      { images: [url], question: `${asked} <image>`, chosen: "A red square.", rejected: "A cat." },
      `${asked} ${pictureMark}`,
    ],
    [
      "a preference whose prompt has parts",
      {
        prompt: [
          turn("user", [
            { type: "image_url", image_url: { url } },
            { type: "text", text: asked },
          ]),
        ],
        chosen: [turn("assistant", "A red square.")],
        rejected: [turn("assistant", "A cat.")],
      },
      asked,
    ],
    ["Hugging Face's struct", { image: { bytes: url, path: "a.png" }, question: asked, answer: "A red square." }, asked],
  ])("%s", async (_, row, content) => {
    const { records, rejections, entries } = await read(jsonl(row));
    expect(rejections).toEqual([]);
    expect(records[0]?.media).toEqual([of(red, "image/png")]);
    expect(records[0]?.messages?.[0]).toEqual({ role: "user", content, media: [0] });
    expect(entries).toHaveLength(1);
  });

  it("of each kind, with the size that is shown", async () => {
    const { records } = await read(
      jsonl(...[red, blue, green, grey, turned].map((bytes) => ({ image: dataUrl(bytes, "image/anything"), caption: "A square." }))),
    );
    expect(records.map(({ media }) => media?.[0])).toEqual([
      of(red, "image/png"),
      of(blue, "image/jpeg"),
      of(green, "image/webp"),
      of(grey, "image/gif"),
      of(turned, "image/jpeg", { width: 16, height: 24 }),
    ]);
  });

  it("several, in the places of their marks", async () => {
    const messages = [
      turn("user", [
        { type: "image_url", image_url: { url } },
        { type: "text", text: "or" },
        { type: "image_url", image_url: { url: dataUrl(blue) } },
        { type: "text", text: "?" },
        { type: "text", text: "Say." },
      ]),
      turn("assistant", "The first."),
    ];
    const { records, put } = await read(jsonl({ messages }, { messages }));
    expect(records[0]?.messages?.[0]).toEqual({ role: "user", content: `${pictureMark}or${pictureMark}?\nSay.`, media: [0, 1] });
    expect(put).toEqual([digestOf(red), digestOf(blue)]);
  });
});

const rowsOf = (image: string) => jsonl({ image, caption: "A square." });
const archives: Record<string, (files: Record<string, Buffer>) => Promise<Buffer>> = {
  zip: async (files) => Buffer.from(zipSync(files)),
  tar: async (files) => {
    const tar = pack();
    for (const [name, bytes] of Object.entries(files)) tar.entry({ name }, bytes);
    tar.finalize();
    return buffer(tar);
  },
};
archives["tar.gz"] = async (files) => gzipSync(await (archives.tar as (typeof archives)[string])(files));

describe.each(Object.entries(archives))("in a %s archive", (_, make) => {
  it.each([
    ["beside the rows", "data/rows.jsonl", "data/images/1.png", "images/1.png"],
    ["from the root", "data/rows.jsonl", "images/1.png", "images/1.png"],
    ["with a dot", "rows.jsonl", "coco/train/1.png", "./coco/train/1.png"],
    ["with a shortened path", "rows.jsonl", "images/coco/train/1.png", "train/1.png"],
  ])("found %s", async (__, rows, at, path) => {
    const { records, rejections, notes } = await read(await make({ [rows]: rowsOf(path), [at]: red }));
    expect(rejections).toEqual([]);
    expect(records[0]?.media?.[0]).toMatchObject({ ref: digestOf(red), source: path });
    expect(notes).toEqual([]);
  });

  it("named by Hugging Face's metadata.csv", async () => {
    const { records } = await read(
      await make({ "train/metadata.csv": Buffer.from("file_name,text\n1.png,A square.\n"), "train/1.png": red }),
    );
    expect(records[0]?.media?.[0]?.ref).toBe(digestOf(red));
  });

  it("with a text beside each picture, as tools for captions leave them", async () => {
    const { records, rejections, notes } = await read(
      await make({
        "set/1.png": red,
        "set/1.txt": Buffer.from("\uFEFFA red square.\n"),
        "set/2.jpg": blue,
        "set/2.txt": Buffer.from("A blue square."),
        "readme.txt": Buffer.from("Squares."),
      }),
    );
    expect(rejections).toEqual([]);
    expect(records.map(({ messages, media }) => [messages?.at(-1)?.content, media?.[0]?.ref])).toEqual([
      ["A red square.", digestOf(red)],
      ["A blue square.", digestOf(blue)],
    ]);
    expect(notes).toMatchObject([{ code: "FILES_LEFT_OUT", message: expect.stringContaining("readme.txt") as string }]);
  });

  it("missing, ambiguous, broken, of no kind, and outside of the archive: each is told with its line", async () => {
    const names = ["nowhere.png", "1.png", "broken.png", "text.png", "../../etc/passwd", "2.png"];
    const { records, rejections } = await read(
      await make({
        "rows.jsonl": jsonl(...names.map((image) => ({ image, caption: "A square." }))),
        "a/1.png": red,
        "b/1.png": blue,
        "broken.png": red.subarray(0, red.length - 30),
        "text.png": Buffer.from("no picture"),
        "2.png": green,
      }),
    );
    expect(records).toHaveLength(1);
    expect(rejections.map(({ line, code }) => [line, code])).toEqual([
      [1, "PICTURE_MISSING"],
      [2, "PICTURE_MISSING"],
      [3, "PICTURE_BROKEN"],
      [4, "PICTURE_UNSUPPORTED"],
      [5, "PICTURE_MISSING"],
    ]);
    expect(rejections[1]?.message).toBe(
      'rows.jsonl, line 2: the archive has several files that the picture "1.png" may be. Write its whole path in the archive.',
    );
  });
});

describe("a picture that cannot be used", () => {
  it("is found also while others are decoded", async () => {
    for (let n = 0; n < 150; n++) {
      const [broken] = await Promise.all([judgePicture(red.subarray(0, red.length - 20), "it"), judged(red), judged(blue)]);
      expect(broken).toMatchObject({ code: "PICTURE_BROKEN" });
    }
    async function judged(picture: Buffer): Promise<void> {
      await thumbnailOf(picture, (await judgePicture(picture, "it")) as PictureEntry);
    }
  });

  it("that is cut off, in each kind", async () => {
    const large = square("red", 300, 300);
    for (const bytes of [await large.png().toBuffer(), await large.jpeg().toBuffer(), await large.webp({ lossless: true }).toBuffer()]) {
      expect(await judgePicture(bytes.subarray(0, Math.floor(bytes.length * 0.7)), "it")).toMatchObject({ code: "PICTURE_BROKEN" });
    }
  });

  /** A PNG with another chunk before its last one. */
  const withChunk = (kind: string, data: Buffer, checksum?: number): Buffer => {
    const body = Buffer.concat([Buffer.from(kind), data]);
    const [length, sum] = [Buffer.alloc(4), Buffer.alloc(4)];
    length.writeUInt32BE(data.length);
    sum.writeUInt32BE(checksum ?? crc32(body));
    return Buffer.concat([red.subarray(0, -12), length, body, sum, red.subarray(-12)]);
  };
  it("that libvips reads and Pillow does not, or reads otherwise", async () => {
    const text = (size: number) => withChunk("zTXt", Buffer.concat([Buffer.from("note\0\0"), deflateSync(Buffer.alloc(size))]));
    expect(await judgePicture(text(1000), "it")).toMatchObject({ width: 24 });
    expect(await judgePicture(text(2_000_000), "it")).toMatchObject({
      code: "PICTURE_BROKEN",
      message: expect.stringContaining("zTXt") as string,
    });
    const wrong = withChunk("tEXt", Buffer.from("note\0x"), 1);
    expect(await judgePicture(wrong, "it")).toMatchObject({
      code: "PICTURE_BROKEN",
      message: expect.stringContaining("checksum") as string,
    });
    const deep = await sharp(Buffer.alloc(2 * 24 * 16), { raw: { width: 24, height: 16, channels: 1, depth: "ushort" } } as never)
      .toColourspace("grey16")
      .png()
      .toBuffer();
    expect(await judgePicture(deep, "it")).toMatchObject({
      code: "PICTURE_UNSUPPORTED",
      message: expect.stringContaining("16 bits") as string,
    });
    const meta =
      '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>';
    expect(await judgePicture(await square("red").withXmp(meta).png().toBuffer(), "it")).toMatchObject({ width: 16, height: 24 });
  });

  it("that unpacks to a hundred million pixels", async () => {
    // 10,000 × 10,000 equal pixels: some 300 KB.
    const bomb = await sharp({ create: { width: 10_000, height: 10_000, channels: 3, background: "white" } })
      .png()
      .toBuffer();
    expect(bomb.length).toBeLessThan(1e6);
    const before = process.memoryUsage().rss;
    const { rejections } = await read(jsonl({ image: dataUrl(bomb), caption: "White." }));
    expect(rejections).toMatchObject([{ line: 1, code: "PICTURE_TOO_LARGE" }]);
    expect(process.memoryUsage().rss - before).toBeLessThan(100e6);
  });

  it("that is a strip, an SVG, or says that it is another kind", async () => {
    const svg = Buffer.from('<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>');
    expect(await judgePicture(await square("red", 2000, 2).png().toBuffer(), "it")).toMatchObject({ code: "PICTURE_TOO_LARGE" });
    expect(await judgePicture(svg, "it")).toMatchObject({ code: "PICTURE_UNSUPPORTED" });
    expect(await judgePicture(Buffer.concat([red.subarray(0, 8), svg]), "it")).toMatchObject({ code: "PICTURE_BROKEN" });
  });

  it("whatever bytes come, in memory of a few pictures", async () => {
    const heads = [red, blue, green, grey];
    const made = fc.record({ of: fc.nat(3), at: fc.nat(200), bytes: fc.uint8Array({ maxLength: 40 }), keep: fc.nat(400) });
    await fc.assert(
      fc.asyncProperty(made, async ({ of, at, bytes, keep }) => {
        const picture = Buffer.from(heads[of] as Buffer);
        picture.set(bytes.subarray(0, Math.max(0, picture.length - at)), Math.min(at, picture.length));
        const judged = await judgePicture(picture.subarray(0, keep), "it");
        expect("code" in judged ? judged.code.startsWith("PICTURE_") : judged.width * judged.height <= pictureLimits.pixels).toBe(true);
      }),
      { numRuns: 300 },
    );
    expect(process.memoryUsage().rss).toBeLessThan(1.5e9);
  });

  it("in a row that shows too many", async () => {
    const { rejections } = await read(
      jsonl({ images: Array.from({ length: 33 }, () => dataUrl(red)), question: "How many?", answer: "33" }),
    );
    expect(rejections).toMatchObject([{ line: 1, code: "PICTURES_TOO_MANY" }]);
  });

  it("whose data URL or path is millions of characters that mean nothing, in the time of its length", async () => {
    const rows = jsonl(
      { image: `data:image/png;base64,${" ".repeat(4_000_000)}!`, caption: "A square." },
      { image: `${"a/".repeat(1_000_000)}${"b/../".repeat(1_000_000)}1.png`, caption: "A square." },
      { image: dataUrl(red).replace(/(.{70})/g, "$1\n "), caption: "A square." },
    );
    const { records, rejections } = await read(zipSync({ "rows.jsonl": rows, "1.png": red }));
    expect(rejections.map(({ line, code }) => [line, code])).toEqual([
      [1, "PICTURE_BROKEN"],
      [2, "PICTURE_MISSING"],
    ]);
    expect(records).toHaveLength(1);
  });

  it("whose path stands in a file that is no archive", async () => {
    const { rejections } = await read(rowsOf("images/1.png"));
    expect(rejections).toEqual([
      {
        line: 1,
        code: "PICTURE_MISSING",
        message: 'line 1: the picture "images/1.png" is not in the file. Pack the file and its pictures into one ZIP or tar, or give URLs.',
      },
    ]);
  });
});

describe("at a URL", () => {
  const urls = (...paths: string[]) => jsonl(...paths.map((path) => ({ image_url: `https://a.test/${path}`, caption: "A square." })));

  it("is fetched once, and told of where it was", async () => {
    const asked: string[] = [];
    const fetch: Fetch = async (url) => (asked.push(url), red);
    const { records, put } = await read(urls("1.png", "1.png", "2.png"), fetch);
    expect(asked).toEqual(["https://a.test/1.png", "https://a.test/2.png"]);
    expect(put).toEqual([digestOf(red)]);
    expect(records.map(({ media }) => media?.[0]?.source)).toEqual([
      "https://a.test/1.png",
      "https://a.test/1.png",
      "https://a.test/2.png",
    ]);
  });

  it("that is refused, too large or away: its row is told, others go on", async () => {
    const errors: Record<string, Error> = {
      "https://a.test/404.png": new PermanentError("FETCH_REFUSED", "a.test answered with status 404: there is no such file"),
      "https://a.test/large.png": new PermanentError("FETCH_TOO_LARGE", "too large"),
      "https://a.test/internal.png": new PermanentError("ADDRESS_REFUSED", "a.test is 10.0.0.1, which is not public"),
      "https://a.test/away.png": new RetryLaterError("FETCH_FAILED", 1000, "a.test does not answer"),
    };
    const fetch: Fetch = async (url) => {
      if (errors[url] !== undefined) throw errors[url];
      return red;
    };
    const { records, rejections } = await read(urls("404.png", "large.png", "internal.png", "away.png", "1.png"), fetch);
    expect(records).toHaveLength(1);
    expect(rejections.map(({ code }) => code)).toEqual([
      "PICTURE_UNREACHABLE",
      "PICTURE_TOO_LARGE",
      "PICTURE_UNREACHABLE",
      "PICTURE_UNREACHABLE",
    ]);
    expect(rejections[0]?.message).toContain("there is no such file");
  });

  it("stays where it is when nobody fetches, or not now", async () => {
    for (const fetch of [undefined, async () => undefined]) {
      const { records } = await read(urls("1.png"), fetch);
      expect(records[0]?.media).toEqual([{ type: "image", ref: "https://a.test/1.png" }]);
    }
  });
});

it("the report counts pictures, each once, names the first, and shows in samples where they stand", async () => {
  const question = { image: dataUrl(red), question: "Is <image> red?", answer: "Yes." };
  const caption = { image: dataUrl(red), caption: "A red square." };
  const { records, rejections } = await read(
    jsonl(question, caption, { image: dataUrl(blue), caption: "A blue square." }, { image_url: "https://a.test/1.png", caption: "?" }),
  );
  const builder = createReport();
  await builder.add({ records, rejections });
  const report = builder.report(null);
  expect(report.pictures).toEqual({
    records: 4,
    count: 2,
    bytes: red.length + blue.length,
    notFetched: 1,
    samples: [
      { line: 1, digest: digestOf(red), bytes: red.length, media_type: "image/png", width: 24, height: 16 },
      { line: 3, digest: digestOf(blue), bytes: blue.length, media_type: "image/jpeg", width: 24, height: 16 },
    ],
  });
  expect(report.warnings).toContainEqual(expect.objectContaining({ code: "PICTURES_NOT_FETCHED", count: 1 }));
  const said = (report.samples ?? []).map(({ segments }) => segments.map(({ text }) => text).join(""));
  expect(said).toContain("user: Is [image] red?\nassistant: Yes.\n");
  expect(said).toContain("user: [image] Describe this image.\nassistant: A red square.\n");
});

it("the report has small versions of the first pictures, upright, which are never larger than the pictures", async () => {
  const large = await square("red", 1600, 800).withMetadata({ orientation: 6 }).jpeg().toBuffer();
  const { records, rejections, thumbnails } = await read(
    jsonl({ image: dataUrl(large), caption: "A square." }, { image: dataUrl(blue), caption: "A square." }),
  );
  const builder = createReport({ thumbnails });
  await builder.add({ records, rejections });
  const bytesOf = (url = ""): Buffer => Buffer.from(url.slice("data:image/webp;base64,".length), "base64");
  const shown = (builder.report(null).pictures?.samples ?? []).map(({ thumbnail }) => sharp(bytesOf(thumbnail)).metadata());
  expect(await Promise.all(shown)).toMatchObject([
    { format: "webp", width: 64, height: 128 },
    { format: "webp", width: 24, height: 16 },
  ]);
});
