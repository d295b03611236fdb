/**
 * Takes the pictures that records show: from the row itself, from the archive in which the row stands, or from where a URL leads. A record whose
 * picture is missing, broken or too large becomes a rejection that says so.
 */
import { posix } from "node:path";
import { type Digest, type PictureEntry, pictureLimits, type Rec } from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime";
import { type Refusal, refuse } from "../formats/signature.ts";
import { recordId } from "../formats/record-id.ts";
import { judgePicture, thumbnailOf, tooLarge } from "./judge-picture.ts";

/** The files beside a row's own, in an archive. */
export interface FilesBeside {
  readonly files: readonly { readonly name: string; readonly size: number }[];
  open(name: string): AsyncIterable<Uint8Array>;
}

export interface PictureTakerOptions {
  /**
   * Reads a URL. Absent, or if it returns undefined: the picture is left where it is. @throws PermanentError, RetryLaterError: why it cannot be read
   */
  fetch?: (url: string) => Promise<Uint8Array | undefined>;
  /** Keeps a picture; called once for each digest. */
  put?: (entry: PictureEntry, bytes: Uint8Array) => Promise<void>;
  /** Of how many pictures, the first ones, a small version is made. Default: none. */
  thumbnails?: number;
}

export interface PictureTaker {
  /** @returns the record with its pictures' digests, and another id. */
  take(record: Rec, from: { place: string; file: string | undefined; beside: FilesBeside | undefined }): Promise<Rec | Refusal>;
  /** All pictures so far, each once, in the order in which records show them. */
  readonly entries: ReadonlyMap<Digest, PictureEntry>;
  /** Small versions of the first ones, as data URLs. */
  readonly thumbnails: ReadonlyMap<Digest, string>;
}

/** Names of pictures that are remembered with what they are: rows often show one picture several times. */
const mostRemembered = 200_000;
/** Longest path, in characters: names in archives have a thousand. Longer ones take quadratic time to be looked up, and room where they are remembered. */
const longestPath = 4096;

export function createPictureTaker({ fetch, put, thumbnails: most = 0 }: PictureTakerOptions = {}): PictureTaker {
  const entries = new Map<Digest, PictureEntry>();
  const thumbnails = new Map<Digest, string>();
  const known = new Map<string, Promise<PictureEntry | Refusal | undefined>>();
  const indexes = new WeakMap<FilesBeside, ReturnType<typeof indexOf>>();
  const indexFor = (beside: FilesBeside): ReturnType<typeof indexOf> => {
    const index = indexes.get(beside) ?? indexOf(beside);
    indexes.set(beside, index);
    return index;
  };

  const judged = async (bytes: Uint8Array, what: string): Promise<PictureEntry | Refusal> => {
    const entry = await judgePicture(bytes, what);
    if ("code" in entry || entries.has(entry.digest)) return entry;
    if (entries.size >= pictureLimits.ofDataset) {
      return refuse("PICTURES_TOO_MANY", `the dataset has more than ${pictureLimits.ofDataset} pictures. Split it.`);
    }
    entries.set(entry.digest, entry);
    const isShown = entries.size <= most;
    await put?.(entry, bytes);
    if (isShown) thumbnails.set(entry.digest, await thumbnailOf(bytes, entry));
    return entry;
  };

  const fromUrl = async (url: string): Promise<PictureEntry | Refusal | undefined> => {
    const what = `the picture ${shortened(url)}`;
    let bytes: Uint8Array | undefined;
    try {
      bytes = await fetch?.(url);
    } catch (error) {
      const { code, message } = error as { code?: string; message: string };
      if (code === "FETCH_TOO_LARGE") return tooLarge(what, `has more than ${pictureLimits.bytes} bytes`);
      if (code === "PICTURES_TOO_MANY") return refuse(code, `${what} was not fetched: ${message}`);
      if (code === undefined || !/^(?:URL_|FETCH_|ADDRESS_REFUSED$|TOO_MANY_REDIRECTS$)/.test(code)) throw error;
      return refuse("PICTURE_UNREACHABLE", `${what} cannot be fetched: ${message}`);
    }
    return bytes === undefined ? undefined : judged(bytes, what);
  };

  const fromArchive = async (ref: string, file: string | undefined, beside: FilesBeside | undefined): Promise<PictureEntry | Refusal> => {
    const what = `the picture "${shortened(ref)}"`;
    if (beside === undefined) {
      return refuse("PICTURE_MISSING", `${what} is not in the file. Pack the file and its pictures into one ZIP or tar, or give URLs.`);
    }
    const found = findBeside(indexFor(beside), ref, file);
    if (found === "none") return refuse("PICTURE_MISSING", `${what} is not in the archive. Add it, or correct its path.`);
    if (found === "several") {
      return refuse("PICTURE_MISSING", `the archive has several files that ${what} may be. Write its whole path in the archive.`);
    }
    if (found.size > pictureLimits.bytes) return tooLarge(what, `has ${found.size} bytes; ${pictureLimits.bytes} are allowed`);
    return judged(await readAll(beside.open(found.name), pictureLimits.bytes), what);
  };

  const remembered = (
    key: string,
    make: () => Promise<PictureEntry | Refusal | undefined>,
  ): Promise<PictureEntry | Refusal | undefined> => {
    if (key.length > 2 * longestPath) return make();
    const before = known.get(key);
    if (before !== undefined) return before;
    if (known.size >= mostRemembered) known.clear();
    const made = make();
    known.set(key, made);
    return made;
  };

  return {
    entries,
    thumbnails,
    async take(record, { place, file, beside }) {
      const { media = [] } = record;
      if (media.length > pictureLimits.ofRecord) {
        return refuse("PICTURES_TOO_MANY", `${place}: it shows ${media.length} pictures; ${pictureLimits.ofRecord} are allowed.`);
      }
      const taken: NonNullable<Rec["media"]> = [];
      for (const [at, one] of media.entries()) {
        const { ref } = one;
        let entry: PictureEntry | Refusal | undefined;
        let source: string | undefined;
        if (/^data:/i.test(ref)) entry = await fromDataUrl(ref, media.length === 1 ? "its picture" : `its picture ${at + 1}`, judged);
        else if (/^[a-z][a-z0-9+.-]*:\/\//i.test(ref)) {
          source = ref;
          entry = await remembered(ref, () => fromUrl(ref));
        } else {
          source = ref;
          entry = await remembered(JSON.stringify([file === undefined ? "" : posix.dirname(file), ref]), () =>
            fromArchive(ref, file, beside),
          );
        }
        if (entry === undefined) {
          taken.push(one);
          continue;
        }
        if ("code" in entry) return refuse(entry.code, `${place}: ${entry.message}`);
        const { digest, ...facts } = entry;
        taken.push({ type: one.type, ref: digest, ...facts, ...(source === undefined ? {} : { source: shortened(source) }) });
      }
      const { v, id: _, meta, ...body } = { ...record, media: taken };
      return { v, id: recordId(body), ...body, meta };
    },
  };
}

async function fromDataUrl(
  ref: string,
  what: string,
  judged: (bytes: Uint8Array, what: string) => Promise<PictureEntry | Refusal>,
): Promise<PictureEntry | Refusal> {
  const comma = ref.indexOf(",");
  const head = comma === -1 ? "" : ref.slice(0, comma);
  const text = ref.slice(comma + 1);
  if (!/;base64$/i.test(head) || !/^[\w+/\s-]*(?:=\s*){0,2}$/.test(text)) {
    return refuse("PICTURE_BROKEN", `${what} is a data URL that is no base64. Write data:image/png;base64,… with the picture's bytes.`);
  }
  return judged(Buffer.from(text, "base64"), what);
}

const shortened = (text: string): string => (text.length > 200 ? `${text.slice(0, 200)}…` : text).toWellFormed();

/* --- files of an archive --- */

interface FileBeside {
  readonly name: string;
  readonly size: number;
}
interface FileIndex {
  readonly byPath: ReadonlyMap<string, FileBeside>;
  readonly byName: ReadonlyMap<string, readonly FileBeside[]>;
}

function indexOf({ files }: FilesBeside): FileIndex {
  const byPath = new Map<string, FileBeside>();
  for (const file of files) byPath.set(posix.normalize(file.name), file);
  return { byPath, byName: Map.groupBy(files, ({ name }) => posix.basename(name)) };
}

/** The file that a path means: beside the row's own file, from the archive's root, or the only one whose path ends so. Nothing outside of the archive. */
function findBeside({ byPath, byName }: FileIndex, ref: string, file: string | undefined): FileBeside | "none" | "several" {
  if (ref.length > longestPath) return "none";
  const path = posix.normalize(ref.replaceAll("\\", "/").replace(/^file:/, "")).replace(/^\/+/, "");
  const own = file === undefined ? undefined : byPath.get(posix.join(posix.dirname(file), path));
  const exact = own ?? byPath.get(path);
  if (exact !== undefined) return exact;
  const ending = `/${path.replace(/^(?:\.\.?\/)+/, "")}`;
  const [only, more] = (byName.get(posix.basename(path)) ?? []).filter(({ name }) => `/${name}`.endsWith(ending));
  return only === undefined ? "none" : more === undefined ? only : "several";
}

/** @throws PermanentError FILE_TOO_LARGE: it has more bytes than the archive's table says */
async function readAll(source: AsyncIterable<Uint8Array>, maxBytes: number): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  let size = 0;
  for await (const part of source) {
    size += part.byteLength;
    if (size > maxBytes) throw new PermanentError("FILE_TOO_LARGE", `a picture in the archive has more than ${maxBytes} bytes. Remove it.`);
    parts.push(part);
  }
  return Buffer.concat(parts);
}
