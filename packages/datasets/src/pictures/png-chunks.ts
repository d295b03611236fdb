/**
 * The chunks of a PNG beside its pixels. Pillow, with which trainer and engine read pictures, refuses a picture for a wrong checksum in any chunk and for
 * a compressed text or profile that is large when it is unpacked; libvips, which judges pictures, passes over both.
 */
import { crc32, inflateSync } from "node:zlib";

/** Pillow's MAX_TEXT_CHUNK. */
const mostUnpacked = 1024 * 1024;
const signatureBytes = 8;

/** @throws Error that says what is wrong */
export function judgePngChunks(bytes: Uint8Array): void {
  const file = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = signatureBytes; at + 12 <= file.length;) {
    const length = file.readUInt32BE(at);
    const kind = file.toString("latin1", at + 4, at + 8);
    const end = at + 8 + length;
    if (end + 4 > file.length) return; // cut off, which decoding finds
    if (crc32(file.subarray(at + 4, end)) !== file.readUInt32BE(end)) throw new Error(`the checksum of its chunk ${kind} is wrong`);
    if (kind === "IEND") return;
    const packed = packedIn(kind, file.subarray(at + 8, end));
    if (packed !== undefined) {
      try {
        inflateSync(packed, { maxOutputLength: mostUnpacked });
      } catch (error) {
        throw new Error(`its chunk ${kind} has more than ${mostUnpacked} bytes of text or profile, or is damaged`, { cause: error });
      }
    }
    at = end + 4;
  }
}

/** The compressed part of a chunk; undefined: it has none. */
function packedIn(kind: string, data: Buffer): Buffer | undefined {
  const afterName = data.indexOf(0) + 1;
  if (afterName === 0) return undefined;
  // Behind the name: the method.
  if (kind === "zTXt" || kind === "iCCP") return data.subarray(afterName + 1);
  if (kind !== "iTXt" || data[afterName] !== 1) return undefined;
  // Behind the name: whether it is compressed, the method, the language, the name in that language.
  const afterLanguage = data.indexOf(0, afterName + 2) + 1;
  const afterTranslation = data.indexOf(0, afterLanguage) + 1;
  return afterLanguage === 0 || afterTranslation === 0 ? undefined : data.subarray(afterTranslation);
}
