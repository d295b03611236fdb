/**
 * Pure: refuses pictures that an engine cannot see, and such as it must not be given. The engine fetches nothing for anybody: a client sends a
 * picture with its request, as a data URL.
 */
import type { EngineRecord } from "@loraline/contracts";
import type { PermanentError } from "@loraline/runtime";
import { badRequest } from "../../errors.ts";

type Fields = Readonly<Record<string, unknown>>;

/** Parts of a message that hold no picture. */
const texts = new Set(["text", "input_text", "output_text", "refusal", "thinking", "tool_reference"]);
const isData = /^data:image\/(?:png|jpeg|webp|gif);base64,[A-Za-z0-9+/=]/;
/** The engine prepares pictures as their base says, or a request could ask for any size. */
const settings = ["mm_processor_kwargs", "media_io_kwargs"];

/** @throws PermanentError 400 `pictures_unsupported`, `picture_refused`, `unsupported` */
export function judgePictures(body: Fields, engine: Pick<EngineRecord, "pictures"> | undefined): void {
  const set = settings.find((field) => (body[field] ?? undefined) !== undefined);
  if (set !== undefined) {
    throw badRequest("unsupported", `${set}: pictures are prepared as the base was trained with them. Remove it.`, set);
  }
  const most = engine?.pictures ?? 0;
  let found = 0;
  for (const { part, at } of partsOf(body)) {
    const picture = pictureIn(part, at);
    if (picture === undefined) continue;
    found += 1;
    if (most === 0) {
      throw badRequest(
        "pictures_unsupported",
        `${at}: the base of "${String(body["model"])}" takes no pictures. Ask with text only, or choose a base that does: GET /v1/models says it (modalities).`,
        "messages",
      );
    }
    if (!isData.test(picture)) {
      throw refused(
        at,
        "is no data URL of a PNG, JPEG, WebP or GIF, and pictures are not fetched from elsewhere. Send the picture itself: data:image/png;base64,…",
      );
    }
  }
  if (found > most) throw refused("messages", `have ${found} pictures; a request may have ${most} here. Send fewer.`);
}

const refused = (at: string, why: string): PermanentError => badRequest("picture_refused", `${at} ${why}`, "messages");

function* partsOf({ messages }: Fields): Generator<{ part: Fields; at: string }> {
  if (!Array.isArray(messages)) return;
  for (const [i, message] of messages.entries()) {
    const content = (message as { content?: unknown } | null)?.content;
    // vLLM takes a single part without its list, too.
    const parts: unknown[] = Array.isArray(content) ? content : [content];
    for (const [j, part] of parts.entries()) {
      if (typeof part === "object" && part !== null) yield { part: part as Fields, at: `messages[${i}].content[${j}]` };
    }
  }
}

/** @returns the address of the part's picture; undefined: it has none. */
function pictureIn(part: Fields, at: string): string | undefined {
  const { type, uuid, image_url: image } = part;
  if ((uuid ?? undefined) !== undefined) {
    throw badRequest("unsupported", `${at}.uuid: pictures are not kept between requests. Send the picture itself.`, "messages");
  }
  if (typeof type === "string" && texts.has(type)) return undefined;
  if (type === undefined && typeof part["text"] === "string" && image === undefined) return undefined;
  if (type !== undefined && type !== "image_url") {
    throw badRequest("unsupported", `${at}.type: ${JSON.stringify(type)} is not offered; there are text and image_url.`, "messages");
  }
  const url = typeof image === "object" && image !== null ? (image as Fields)["url"] : image;
  if (typeof url !== "string") throw refused(at, "has no image_url.url, which must be a text.");
  return url;
}
