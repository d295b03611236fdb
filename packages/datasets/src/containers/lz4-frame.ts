/** LZ4 frames, as Arrow packs its buffers with. Node has gzip, brotli and zstd, but no LZ4. Pure. */

const corrupt = (): Error => new Error("its LZ4 data is damaged");

/**
 * @param frame - one LZ4 frame (https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md); checksums are not checked.
 * @param limit - the most bytes that the frame may unpack to.
 */
export function decodeLz4Frame(frame: Uint8Array, limit: number): Uint8Array {
  const view = new DataView(frame.buffer, frame.byteOffset, frame.byteLength);
  if (frame.byteLength < 7 || view.getUint32(0, true) !== 0x184d2204) throw corrupt();
  const flags = view.getUint8(4);
  // Magic, flags, block size; content size and dictionary id when they are there; header checksum.
  let at = 6 + ((flags & 8) === 0 ? 0 : 8) + ((flags & 1) === 0 ? 0 : 4) + 1;
  const blockChecksum = (flags & 16) === 0 ? 0 : 4;
  // Blocks of 64 KiB, 256 KiB, 1 MiB or 4 MiB.
  const blockSize = 1 << (8 + 2 * ((view.getUint8(5) >> 4) & 7));
  let out = new Uint8Array(0);
  let filled = 0;
  for (;;) {
    if (at + 4 > frame.byteLength) throw corrupt();
    const head = view.getUint32(at, true);
    at += 4;
    if (head === 0) break;
    const length = head & 0x7fffffff;
    const block = frame.subarray(at, at + length);
    if (block.byteLength !== length) throw corrupt();
    const needed = Math.min(limit, filled + blockSize);
    if (needed > out.length) {
      const larger = new Uint8Array(Math.min(limit, Math.max(needed, out.length * 2)));
      larger.set(out.subarray(0, filled));
      out = larger;
    }
    if (head >>> 31 === 1) {
      if (filled + length > out.length) throw corrupt();
      out.set(block, filled);
      filled += length;
    } else filled = decodeBlock(block, out, filled);
    at += length + blockChecksum;
  }
  return out.subarray(0, filled);
}

/** Unpacks one block: literals and copies of earlier output, in turns. @returns the index in `out` after the last byte written. */
function decodeBlock(block: Uint8Array, out: Uint8Array, from: number): number {
  let at = 0;
  let filled = from;
  /** Reads a length: one of 15 or more is continued in the following bytes. */
  const lengthOf = (nibble: number): number => {
    let length = nibble;
    if (nibble < 15) return length;
    for (let byte = 255; byte === 255; length += byte) {
      if (at >= block.length) throw corrupt();
      byte = block[at++] as number;
    }
    return length;
  };
  while (at < block.length) {
    const token = block[at++] as number;
    const literals = lengthOf(token >> 4);
    if (at + literals > block.length || filled + literals > out.length) throw corrupt();
    out.set(block.subarray(at, at + literals), filled);
    at += literals;
    filled += literals;
    if (at >= block.length) return filled;
    const offset = (block[at] as number) | ((block[at + 1] as number) << 8);
    at += 2;
    const length = lengthOf(token & 15) + 4;
    if (!(offset > 0 && offset <= filled) || filled + length > out.length) throw corrupt();
    // The source of a copy may overlap its target. Copying byte by byte then repeats the pattern, as the format wants.
    if (offset >= length) out.copyWithin(filled, filled - offset, filled - offset + length);
    else for (let index = 0; index < length; index++) out[filled + index] = out[filled + index - offset] as number;
    filled += length;
  }
  return filled;
}
