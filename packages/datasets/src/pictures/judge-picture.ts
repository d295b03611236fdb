/** What the bytes of a picture are. Bytes come from anybody: the kind is told by their beginning, and only then does a decoder see them. */
import { type PictureEntry, pictureLimits } from "@loraline/contracts";
import { digestOf } from "@loraline/objects";
import { type Refusal, refuse } from "../formats/signature.ts";
import { kindOfPicture } from "./kind-of-picture.ts";
import { judgePngChunks } from "./png-chunks.ts";

/** A picture of so many pixels is decoded alone: its memory is a few bytes for each. */
const largePixels = 4_000_000;
let large: Promise<unknown> = Promise.resolve();
async function inTurn<T>(pixels: number, decode: () => Promise<T>): Promise<T> {
  if (pixels < largePixels) return decode();
  const turn = large.then(decode, decode);
  large = turn.catch(() => undefined);
  return turn;
}

/** Loaded with the first picture: most datasets have none, and threads that only tokenize import this package, too. */
async function load() {
  const { default: sharp } = await import("sharp");
  // Nothing is kept of what strangers send.
  sharp.cache(false);
  return (bytes: Uint8Array) => sharp(bytes, { failOn: "error", limitInputPixels: pictureLimits.pixels, sequentialRead: true });
}

/**
 * Decodes a picture whole, so that one that is cut off or damaged is found before somebody trains on it.
 * @param what - names the picture in messages, such as "the picture images/1.png".
 */
export async function judgePicture(bytes: Uint8Array, what: string): Promise<PictureEntry | Refusal> {
  if (bytes.byteLength === 0) return refuse("PICTURE_BROKEN", `${what} is empty. Give the picture itself, or remove the row.`);
  if (bytes.byteLength > pictureLimits.bytes) return tooLarge(what, `has ${bytes.byteLength} bytes; ${pictureLimits.bytes} are allowed`);
  const media_type = kindOfPicture(bytes);
  if (media_type === undefined) {
    return refuse("PICTURE_UNSUPPORTED", `${what} is no PNG, JPEG, WebP or GIF. Save it as one of these.`);
  }
  const open = await load();
  try {
    const { width: stored, height, format, autoOrient, orientation, depth, channels, xmp } = await open(bytes).metadata();
    if (`image/${format}` !== media_type) throw new Error(`its first bytes are those of ${media_type}, and it is ${format}`);
    const [long, short] = [Math.max(stored, height), Math.min(stored, height)];
    if (long > pictureLimits.side || long > short * pictureLimits.ratio || stored * height > pictureLimits.pixels) {
      const { pixels, side, ratio } = pictureLimits;
      return tooLarge(what, `has ${stored} × ${height} pixels; ${pixels} in all, ${side} a side and sides of ${ratio}:1 are allowed`);
    }
    // Trainer and engine read pictures with Pillow, and so must find what is found here.
    if (depth === "ushort" && channels <= 2) {
      return refuse("PICTURE_UNSUPPORTED", `${what} has 16 bits of grey, most of which would be read as white. Save it with 8 bits.`);
    }
    if (format === "png") judgePngChunks(bytes);
    const { channels: decoded } = await inTurn(stored * height, () => open(bytes).stats());
    // libvips keeps the last error of all threads: where another one clears it at this moment, sharp returns nothing instead of throwing.
    if (decoded.length === 0) throw new Error("it is cut off or damaged");
    const isTurned = orientation === undefined && xmp !== undefined && /tiff:Orientation(?:="|>)[5-8]/.test(xmp.toString("latin1"));
    const [width, high] = isTurned ? [height, stored] : [autoOrient.width, autoOrient.height];
    return { digest: digestOf(bytes), bytes: bytes.byteLength, media_type, width, height: high };
  } catch (error) {
    const [why = ""] = (error as Error).message.split("\n");
    if (/pixel limit|exceeds/i.test(why)) return tooLarge(what, `has more than ${pictureLimits.pixels} pixels`);
    return refuse("PICTURE_BROKEN", `${what} cannot be decoded (${why.slice(0, 200).toWellFormed()}). Save it again, or remove the row.`);
  }
}

/** Side of the square into which a thumbnail fits, in pixels. */
const thumbnailSide = 128;

/** @returns a small version of a picture that was judged, as a data URL of a few kilobytes. */
export async function thumbnailOf(bytes: Uint8Array, { width, height }: PictureEntry): Promise<string> {
  const open = await load();
  const small = await inTurn(width * height, () =>
    open(bytes)
      .autoOrient()
      .resize(thumbnailSide, thumbnailSide, { fit: "inside", withoutEnlargement: true })
      .webp({ quality: 70 })
      .toBuffer(),
  );
  return `data:image/webp;base64,${small.toString("base64")}`;
}

export const tooLarge = (what: string, how: string): Refusal => refuse("PICTURE_TOO_LARGE", `${what} ${how}. Make it smaller.`);
