/** Recognises a file's type by its first bytes. Pure. The name is not used: people rename files, and imports may have none. */

/** `utf-8` without a byte order mark may be anything that extends ASCII (see `decodeText`). */
export type Encoding = "utf-8" | "utf-16le" | "utf-16be";

type Recognised =
  | { readonly is: "gzip" | "zstd" | "parquet" | "arrow-file" | "arrow-stream" | "zip" | "tar" }
  /** `skip`: length of the byte order mark, in bytes. */
  | { readonly is: "text"; readonly encoding: Encoding; readonly skip: number }
  | { readonly is: "other"; readonly name: string; readonly advice: string };

/** Bytes that `recognise` wants to see, or the whole file if it is shorter. */
export const recogniseBytes = 64 * 1024;

interface Magic {
  readonly name: string;
  readonly advice: string;
  readonly bytes: readonly number[] | string;
  readonly at?: number;
}
const unpackIt = "Unpack it first, or pack it with gzip or zstd.";
const exportIt = "Export the rows as JSON Lines, CSV or Parquet.";

/** Types of files that people upload by mistake. The first match counts. */
const others: readonly Magic[] = [
  { name: "a PDF document", bytes: "%PDF-", advice: exportIt },
  { name: "an xz file", bytes: [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00], advice: unpackIt },
  { name: "an lz4 file", bytes: [0x04, 0x22, 0x4d, 0x18], advice: unpackIt },
  { name: "a 7z archive", bytes: [0x37, 0x7a, 0xbc, 0xaf, 0x27, 0x1c], advice: unpackIt },
  { name: "a RAR archive", bytes: "Rar!\u001a\u0007", advice: unpackIt },
  { name: "an old Excel or Word file", bytes: [0xd0, 0xcf, 0x11, 0xe0, 0xa1, 0xb1, 0x1a, 0xe1], advice: "Save the sheet as CSV (UTF-8)." },
  { name: "an SQLite database", bytes: "SQLite format 3\0", advice: exportIt },
  { name: "an HDF5 file", bytes: [0x89, 0x48, 0x44, 0x46, 0x0d, 0x0a, 0x1a, 0x0a], advice: exportIt },
  { name: "a NumPy array", bytes: [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59], advice: exportIt },
  { name: "an Avro file", bytes: "Obj\u0001", advice: exportIt },
  { name: "a GGUF model", bytes: "GGUF\u0003", advice: "That is a model, not a dataset." },
  { name: "a PNG image", bytes: [0x89, 0x50, 0x4e, 0x47], advice: exportIt },
  { name: "a JPEG image", bytes: [0xff, 0xd8, 0xff], advice: exportIt },
  { name: "a GIF image", bytes: "GIF89a", advice: exportIt },
  { name: "UTF-32 text", bytes: [0xff, 0xfe, 0x00, 0x00], advice: "Save it as UTF-8." },
  { name: "UTF-32 text", bytes: [0x00, 0x00, 0xfe, 0xff], advice: "Save it as UTF-8." },
  {
    name: "a Git LFS pointer, not the file itself",
    bytes: "version https://git-lfs.github.com/spec/",
    advice: "Fetch the file with `git lfs pull`, or import it by its URL or hub id.",
  },
];

/** Types of ZIP files that are no datasets, by the names of their first members. */
const zips: readonly { name: string; member: RegExp; advice: string }[] = [
  { name: "a Word document (docx)", member: /^word\//, advice: exportIt },
  { name: "a PowerPoint file (pptx)", member: /^ppt\//, advice: exportIt },
  { name: "a PyTorch file", member: /(^|\/)data\.pkl$|^archive\//, advice: "A pickle can run code and is never opened. " + exportIt },
  { name: "NumPy arrays (npz)", member: /\.npy$/, advice: exportIt },
];

/** Texts that are neither JSON nor a table, by how they begin. */
const texts: readonly { name: string; begins: RegExp; advice: string }[] = [
  {
    name: "a Jupyter notebook",
    begins: /^\{\s*"cells"\s*:\s*\[/,
    advice: "`jupyter nbconvert --to markdown FILE` makes Markdown of it, which can be read as plain text.",
  },
  { name: "JSON with comments", begins: /^\/[/*]/, advice: "JSON has no comments: remove them." },
  {
    name: "subtitles",
    begins: /^(?:WEBVTT\b|\d+\r?\n\d\d:\d\d:\d\d[,.]\d{3} -->)/,
    advice: "Write what is said as text (.txt), or as JSON Lines.",
  },
  {
    name: "YAML",
    begins:
      /^(?:(?:#[^\n]*|---[^\n]*|[^\S\n]*)\n)*(?:- +["']?[\p{L}_][\p{L}\p{N}_ -]{0,60}["']?:(?:\s|$)|["']?[\p{L}_][\p{L}\p{N}_-]{0,60}["']?:[^\n]*\n(?:\s*- |["']?[\p{L}_][\p{L}\p{N}_-]{0,60}["']?:\s))/u,
    advice: "`yq -o=json FILE` makes JSON of it.",
  },
];

/**
 * What a text is that would be read as JSON Lines, and cannot be; undefined: nothing that is known.
 * @param head - its beginning, without blank lines before it.
 */
export const recogniseOtherText = (head: string): { name: string; advice: string } | undefined =>
  texts.find(({ begins }) => begins.test(head.slice(0, 4096)));

/** @param head - the file's first `recogniseBytes` bytes, or the whole file if it is shorter. */
export function recognise(head: Uint8Array): Recognised {
  if (has(head, [0x1f, 0x8b])) return { is: "gzip" };
  if (has(head, [0x28, 0xb5, 0x2f, 0xfd]) || isSkippableFrame(head)) return { is: "zstd" };
  // After the magic a Parquet file has binary Thrift data. Text after it means a CSV whose column is called PAR1.
  if (has(head, "PAR1") && (head.byteLength === 4 || (head[4] as number) < 0x20)) return { is: "parquet" };
  if (has(head, "ARROW1\0\0")) return { is: "arrow-file" };
  if (has(head, [0xff, 0xff, 0xff, 0xff])) return { is: "arrow-stream" };
  if (has(head, "PK\u0003\u0004") || has(head, "PK\u0005\u0006")) return recogniseZip(head);
  if (has(head, "ustar", 257)) return { is: "tar" };
  if (has(head, "BZh") && has(head, "1AY&SY", 4)) return { is: "other", name: "a bzip2 file", advice: unpackIt };
  const other = others.find(({ bytes, at }) => has(head, bytes, at));
  if (other !== undefined) return { is: "other", name: other.name, advice: other.advice };
  if (isPickle(head)) return { is: "other", name: "a Python pickle", advice: `A pickle can run code and is never opened. ${exportIt}` };
  if (isSafetensors(head)) return { is: "other", name: "a safetensors file", advice: "That is a model or an adapter, not a dataset." };
  const text = recogniseText(head);
  const page = /^\s*<(?:!doctype html|html|\?xml)[\s>]/i.exec(Buffer.from(head.subarray(0, 512)).toString("latin1"))?.[0];
  if (page !== undefined && text.encoding === "utf-8") {
    return page.toLowerCase().includes("xml")
      ? { is: "other", name: "an XML document", advice: exportIt }
      : { is: "other", name: "a web page (HTML)", advice: "The link was to a page about the file. Download the file itself." };
  }
  return text;
}

function recogniseText(head: Uint8Array): Recognised & { is: "text" } {
  if (has(head, [0xef, 0xbb, 0xbf])) return { is: "text", encoding: "utf-8", skip: 3 };
  if (has(head, [0xff, 0xfe])) return { is: "text", encoding: "utf-16le", skip: 2 };
  if (has(head, [0xfe, 0xff])) return { is: "text", encoding: "utf-16be", skip: 2 };
  // Without a mark: what is written around every value ({, ", :, digits, line ends) has one zero byte in UTF-16, always on the same side.
  const pairs = Math.min(head.byteLength, 4096) >> 1;
  if (pairs >= 2) {
    let [even, odd] = [0, 0];
    for (let at = 0; at < pairs * 2; at += 2) {
      if (head[at] === 0) even++;
      if (head[at + 1] === 0) odd++;
    }
    if (head[0] !== 0 && head[1] === 0 && even === 0 && odd >= pairs / 10) return { is: "text", encoding: "utf-16le", skip: 0 };
    if (head[0] === 0 && head[1] !== 0 && odd === 0 && even >= pairs / 10) return { is: "text", encoding: "utf-16be", skip: 0 };
  }
  return { is: "text", encoding: "utf-8", skip: 0 };
}

function recogniseZip(head: Uint8Array): Recognised {
  const bytes = Buffer.from(head.buffer, head.byteOffset, head.byteLength);
  for (let at = 0; at !== -1 && at + 30 < bytes.length; at = bytes.indexOf("PK\u0003\u0004", at + 4, "latin1")) {
    const length = bytes.readUInt16LE(at + 26);
    const member = bytes.toString("utf8", at + 30, at + 30 + length);
    const known = zips.find((zip) => zip.member.test(member));
    if (known !== undefined) return { is: "other", name: known.name, advice: known.advice };
  }
  return { is: "zip" };
}

/** Protocols 2 to 5 begin with their number; no UTF-8 begins with 0x80. */
const isPickle = (head: Uint8Array): boolean => head[0] === 0x80 && (head[1] as number) >= 2 && (head[1] as number) <= 5;

/** Length of the header as 64 bits, then the header, which is JSON. */
const isSafetensors = (head: Uint8Array): boolean =>
  head.byteLength > 10 &&
  head[8] === 0x7b &&
  head[9] === 0x22 &&
  head[6] === 0 &&
  head[7] === 0 &&
  head[5] === 0 &&
  head[4] === 0 &&
  head[3] === 0;

/** zstd may begin with a frame to be skipped (pzstd writes one). */
const isSkippableFrame = (head: Uint8Array): boolean =>
  head.byteLength >= 12 && (head[0] as number) >= 0x50 && (head[0] as number) <= 0x5f && has(head, [0x2a, 0x4d, 0x18], 1);

function has(head: Uint8Array, bytes: readonly number[] | string, at = 0): boolean {
  for (let index = 0; index < bytes.length; index++) {
    const wanted = typeof bytes === "string" ? bytes.charCodeAt(index) : bytes[index];
    if (head[at + index] !== wanted) return false;
  }
  return true;
}
