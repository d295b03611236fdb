/** A message's content as parts: texts and pictures in their order. Pure. */
import { type Message, pictureMark } from "@loraline/contracts";

/** `picture`: index into the record's `media`. */
type ContentPart = { readonly text: string } | { readonly picture: number };

/** Pictures without a mark stand before the content. A message without pictures is one text, and so are marks that no picture has. */
export function partsOf({ content, media }: Message): ContentPart[] {
  if (media === undefined || media.length === 0) return [{ text: content }];
  const texts = content.split(pictureMark);
  const marked = Math.min(media.length, texts.length - 1);
  const parts: ContentPart[] = media.slice(0, media.length - marked).map((picture) => ({ picture }));
  const rest = media.values().drop(media.length - marked);
  const say = (text: string): unknown => text !== "" && parts.push({ text });
  for (const [at, text] of texts.entries()) {
    say(text);
    const picture = at < texts.length - 1 ? rest.next().value : undefined;
    if (picture !== undefined) parts.push({ picture });
  }
  return parts;
}
