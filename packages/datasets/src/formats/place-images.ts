/** Pictures of a row: where it says that they are, and where in its messages they are shown. Pure. */
import { type Message, pictureMark, type Rec } from "@loraline/contracts";
import { isBlank, isObject, nameOf, type Refusal, refuse } from "./signature.ts";

export type Media = NonNullable<Rec["media"]>;

/** @returns URL, path or data URI of an image; undefined: the value has none. */
export function refOf(image: unknown): string | undefined {
  if (typeof image === "string") return isBlank(image) ? undefined : image;
  if (!isObject(image)) return undefined;
  // Hugging Face's datasets: bytes, which the reader gives as a data URL, and the path that they had.
  const named =
    typeof image.bytes === "string" && image.bytes.startsWith("data:") ? image.bytes : (image.url ?? image.path ?? image.image_url);
  return typeof named === "string" && !isBlank(named) ? named : isObject(named) ? refOf(named) : undefined;
}

/** @returns a row's images; an empty list where the field is absent or empty. */
export function mediaOf(image: unknown, name: string): Media | Refusal {
  if (image === undefined || image === "") return [];
  const media: Media = [];
  for (const one of Array.isArray(image) ? (image as unknown[]) : [image]) {
    if (isObject(one) && typeof one.bytes === "number") {
      return refuse(
        "PICTURE_UNSUPPORTED",
        `\`${name}\` holds ${one.bytes} bytes that are no PNG, JPEG, WebP or GIF. Save it as one of these.`,
      );
    }
    const ref = refOf(one);
    if (ref === undefined) {
      return refuse("IMAGE_UNREADABLE", `\`${name}\` holds ${nameOf(one)} without a path or URL. Give the image's path or URL.`);
    }
    media.push({ type: "image", ref });
  }
  return media;
}

/** Stands in a text for a picture that the row has in a field of its own. */
export const imageMark = "<image>";
const marker = /<image>\n?/g;
/** A mark where LLaVA's rows have it. Elsewhere it may be a word of the text. */
const markAtAnEnd = /^<image>(?:\n|$)|\n<image>$/;
const count = (text: string, of: RegExp): number => text.match(of)?.length ?? 0;

interface Places {
  /** How many of the marks cannot be words of the text, because they were parts of type image. */
  readonly parts?: number | undefined;
  /** The message before which images stand that no mark has a place for. Default: the first user's. */
  readonly question?: Message | undefined;
}

/** Puts a row's images where `<image>` stands in the messages, or before the question. Images that the messages hold themselves are in `media` already. */
export function placeImages(messages: readonly Message[], media: Media, images: Media, places: Places = {}): Refusal | undefined {
  const { parts = 0, question = messages.find(({ role }) => role === "user") } = places;
  if (images.length === 0) {
    const isMarked = media.length === 0 && messages.some(({ role, content }) => role === "user" && markAtAnEnd.test(content));
    return parts > 0 || isMarked
      ? refuse("IMAGES_DIFFER", "a message shows <image>, and the row names no image (`image`, `images`, …). Add it, or remove the mark.")
      : undefined;
  }
  const marks = messages.reduce((sum, { content }) => sum + count(content, marker), 0);
  if (marks > 0 && marks !== images.length) {
    return refuse("IMAGES_DIFFER", `the messages show <image> ${marks} times, and the row has ${images.length} images. Make them equal.`);
  }
  let next = media.length;
  media.push(...images);
  for (const message of messages) {
    const here = marks > 0 ? count(message.content, marker) : message === question ? images.length : 0;
    if (here === 0) continue;
    const own = message.media ?? [];
    // What stood before the content, without marks, still does.
    const unmarked = own.length - count(message.content, everyMark);
    const shown = marks === 0 ? pictureMark.repeat(images.length) : "";
    const text = unmark(message.content, own.length > 0)
      .replace(marker, pictureMark)
      .replace(new RegExp(`\\n(${pictureMark}+)$`), "$1");
    Object.assign(
      message,
      settle(`${pictureMark.repeat(Math.max(0, unmarked))}${shown}${text}`, [...own, ...Array.from({ length: here }, () => next++)]),
    );
  }
  return undefined;
}

const everyMark = new RegExp(pictureMark, "g");
/** The mark, where it is a character of the text and no mark, would be taken for one. */
export const unmark = (content: string, isMarked = false): string => (isMarked ? content : content.replaceAll(pictureMark, ""));

/** Content and pictures of a message. Marks that all stand at its beginning say nothing, and are left out. */
export function settle(content: string, media: number[]): Pick<Message, "content" | "media"> {
  const leading = pictureMark.repeat(media.length);
  return { content: content.startsWith(leading) ? content.slice(leading.length) : content, media };
}
