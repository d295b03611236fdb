import type { PictureEntry } from "@loraline/contracts";

/** The kind of a picture, by its first bytes. Pure. @returns undefined: it is none that can be used */
export function kindOfPicture(bytes: Uint8Array): PictureEntry["media_type"] | undefined {
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, Math.min(12, bytes.byteLength)).toString("latin1");
  if (text.startsWith("\u0089PNG\r\n\u001a\n")) return "image/png";
  if (text.startsWith("\u00ff\u00d8\u00ff")) return "image/jpeg";
  if (text.startsWith("RIFF") && text.slice(8) === "WEBP") return "image/webp";
  if (text.startsWith("GIF87a") || text.startsWith("GIF89a")) return "image/gif";
  return undefined;
}
