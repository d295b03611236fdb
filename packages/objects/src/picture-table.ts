/** The table of a dataset's or run's pictures: a blob of kind `pictures`, JSONL. */
import { createInterface } from "node:readline";
import { Readable } from "node:stream";
import { type BlobRef, type PictureEntry, pictureEntry, type PictureTable } from "@loraline/contracts";
import type { Objects } from "./objects.ts";

/** @returns undefined when there are no pictures. Equal entries, in any order, give equal references. */
export async function putPictureTable(
  objects: Pick<Objects, "put">,
  tenant: string,
  entries: Iterable<PictureEntry>,
): Promise<PictureTable | undefined> {
  // Several are taken side by side, so their order is that of who came first.
  const all = [...entries].sort((a, b) => (a.digest < b.digest ? -1 : 1));
  if (all.length === 0) return undefined;
  const lines = function* (): Generator<Uint8Array> {
    for (const { digest, bytes, media_type, width, height } of all)
      yield Buffer.from(`${JSON.stringify({ digest, bytes, media_type, width, height })}\n`);
  };
  const table = await objects.put(tenant, "pictures", Readable.from(lines()));
  return { table, count: all.length, bytes: all.reduce((sum, { bytes }) => sum + bytes, 0) };
}

export async function* readPictureTable(objects: Pick<Objects, "get">, tenant: string, table: BlobRef): AsyncGenerator<PictureEntry> {
  const input = Readable.from(await objects.get(tenant, table));
  for await (const line of createInterface({ input, crlfDelay: Number.POSITIVE_INFINITY })) {
    if (line !== "") yield pictureEntry.parse(JSON.parse(line));
  }
}

export const blobOfPicture = ({ digest, bytes }: PictureEntry): BlobRef => ({ kind: "picture", digest, size: bytes });
