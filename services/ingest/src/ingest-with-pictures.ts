/**
 * Reads an upload whose rows may give pictures by URL. Their servers may be as slow as they like, so while they are waited for, the upload has neither a place
 * nor a thread that uploads of others need. It is read until its first URL; then, as an import that has its tenant's turn, for all its URLs, which are
 * fetched; then once more, with what came. What was fetched is in the store, and of the upload only its URLs are in memory.
 */
import type { HandlerContext } from "@loraline/bus";
import type { IngestResult } from "@loraline/datasets";

type FetchPicture = (url: string) => Promise<Uint8Array | undefined>;

interface IngestWithPicturesDeps extends Pick<HandlerContext, "withoutPlace"> {
  /** Reads the whole upload. */
  ingest(fetchPicture: FetchPicture): Promise<IngestResult>;
  /** The same, but stores nothing. */
  look(fetchPicture: FetchPicture): Promise<IngestResult>;
  /** Waits until an import of the tenant may begin. */
  takeSlot(): Promise<Disposable>;
  fetchAll(urls: ReadonlySet<string>): Promise<FetchPicture>;
  /** Whether nobody wants the dataset any more. */
  isDeleted(): Promise<boolean>;
}

/** Memory for URLs of one dataset, in bytes: some 80,000 URLs of 100 characters. There may be as many such datasets as imports at once. */
const urlBytes = 16 * 1024 ** 2;
/** Of a URL beside its characters, with what is said of it later. */
const bytesBeside = 100;

/** @returns undefined if it was deleted meanwhile. */
export async function ingestWithPictures({
  ingest,
  look,
  takeSlot,
  fetchAll,
  isDeleted,
  withoutPlace,
}: IngestWithPicturesDeps): Promise<IngestResult | undefined> {
  const firstUrl = new Error("a row gives a picture by URL");
  try {
    return await ingest(async () => {
      throw firstUrl;
    });
  } catch (error) {
    if (error !== firstUrl) throw error;
  }

  const fetchAsImport = async (): Promise<FetchPicture | IngestResult | undefined> => {
    using _slot = await withoutPlace(takeSlot);
    if (await isDeleted()) return undefined;
    const urls = new Set<string>();
    let left = urlBytes;
    const looked = await look(async (url) => {
      left -= urls.has(url) ? 0 : url.length + bytesBeside;
      if (left >= 0) urls.add(url);
      return undefined;
    });
    // Whatever its pictures are: nothing can be read of it.
    if (looked.kind === "rejected" && looked.report === null) return looked;
    // The slot is given away when this function returns, so it waits.
    return await withoutPlace(() => fetchAll(urls));
  };
  const fetched = await fetchAsImport();
  if (typeof fetched !== "function") return fetched;
  return (await isDeleted()) ? undefined : ingest(fetched);
}
