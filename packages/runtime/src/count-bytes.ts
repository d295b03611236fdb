/** @returns the same pieces; each is counted once whoever reads asks for the next. */
export async function* countBytes(pieces: AsyncIterable<Uint8Array>, onPiece: (bytes: number) => void): AsyncGenerator<Uint8Array> {
  for await (const piece of pieces) {
    yield piece;
    onPiece(piece.byteLength);
  }
}
