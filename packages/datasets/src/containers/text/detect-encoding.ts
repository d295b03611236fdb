/**
 * Text that says nothing of its encoding, as UTF-8 bytes. Bytes that are UTF-8 stay as they are. Otherwise the encoding is the mapping's,
 * or the one that a library finds (Mozilla's detector); a find is always told (`notes`), and an uncertain one is an error, never a guess.
 */
import { PermanentError } from "@loraline/runtime";
import type { Note } from "../raw-rows.ts";

/** Bytes after the first that is not ASCII by which the encoding is judged. */
const sampleBytes = 64 * 1024;

/** Encodings that are looked for: the detector's name, and the label of `TextDecoder` (WHATWG) that reads it. */
const labels: Readonly<Record<string, string>> = {
  gb18030: "gb18030",
  big5hkscs: "big5",
  cp932: "shift_jis",
  "euc-jis-2004": "euc-jp",
  cp949: "euc-kr",
  "koi8-r": "koi8-r",
  "windows-1250": "windows-1250",
  "windows-1251": "windows-1251",
  "windows-1252": "windows-1252",
  "windows-1253": "windows-1253",
  "windows-1254": "windows-1254",
  "windows-1257": "windows-1257",
  macroman: "macintosh",
};

/** The detector is right in 99 % of files; below this confidence it had nothing to go by. */
const leastConfidence = 0.03;

/** Share of the characters beyond ASCII that may look odd in an encoding, above those in the best one: trade marks, formulas. */
const mostOdd = 0.1;

/** A byte that UTF-8 never has. It marks where the text was broken, so that only the row with the mark is rejected. */
const broken = 0xff;

/**
 * @param given - the mapping's encoding; undefined: detected.
 * @param notes - gets what was detected.
 * @throws PermanentError FILE_ENCODING_UNCLEAR from the iteration.
 */
export async function* decodeText(
  source: AsyncIterable<Uint8Array>,
  { given, notes }: { given: string | undefined; notes: Note[] },
): AsyncGenerator<Uint8Array, void, undefined> {
  const iterator = source[Symbol.asyncIterator]();
  const rest: AsyncIterable<Uint8Array> = { [Symbol.asyncIterator]: () => iterator };
  try {
    if (given !== undefined) return yield* decoded(rest, given);
    const sample: Uint8Array[] = [];
    let size = 0;
    let ended = false;
    while (size < sampleBytes && !ended) {
      const next = await iterator.next();
      if (next.done === true) ended = true;
      else if (size === 0 && isAscii(next.value)) yield next.value;
      else size += sample.push(Buffer.from(next.value)) && next.value.byteLength;
    }
    const bytes = Buffer.concat(sample);
    const encoding = await encodingOf(bytes, ended, notes);
    async function* all(): AsyncGenerator<Uint8Array> {
      yield bytes;
      yield* rest;
    }
    if (bytes.byteLength > 0) yield* encoding === "utf-8" ? all() : decoded(all(), encoding);
  } finally {
    await iterator.return?.();
  }
}

const isAscii = (bytes: Uint8Array): boolean => bytes.every((byte) => byte < 0x80);

/** @returns the label of an encoding. @throws PermanentError FILE_ENCODING_UNCLEAR */
async function encodingOf(bytes: Buffer, isWhole: boolean, notes: Note[]): Promise<string> {
  // The sample may end in the middle of a character.
  const text = new TextDecoder("utf-8").decode(bytes, { stream: !isWhole });
  let [bad, good] = [0, 0];
  for (const character of text) {
    if (character === "\uFFFD") bad++;
    else if (character > "\u007F") good++;
  }
  // A few broken bytes in UTF-8 are broken rows. By accident other encodings have some pairs of bytes that are UTF-8 too.
  if (bad <= good) return "utf-8";
  // Its tables take 100 ms to load, and most files never need them.
  const { detectAll } = await import("jschardet");
  const found = new Map<string, number>();
  for (const { encoding, confidence } of detectAll(bytes, { minimumThreshold: 0, detectEncodings: Object.keys(labels) })) {
    const label = encoding === null ? undefined : whatwg(encoding);
    if (label !== undefined && !found.has(label) && fits(bytes, label, isWhole)) found.set(label, confidence);
  }
  const [first, second] = plausible(bytes, found).toSorted((a, b) => b[1] - a[1]);
  const isUnclear =
    first === undefined ||
    first[1] < leastConfidence ||
    (second !== undefined && second[1] > first[1] * 0.8 && !saysTheSame(bytes, first[0], second[0]));
  if (isUnclear) {
    // In English a single broken byte is a broken row, and no sign of another encoding.
    if (bad < text.length * 0.01) return "utf-8";
    const candidates = [...found.keys()].slice(0, 4).join(", ") || "none";
    throw new PermanentError(
      "FILE_ENCODING_UNCLEAR",
      `the text is not UTF-8, and its encoding cannot be told (candidates: ${candidates}). Save the file as UTF-8, or name the encoding in the mapping, such as \`encoding: gb18030\`.`,
    );
  }
  const [label] = first;
  notes.push({
    code: "ENCODING_DETECTED",
    message: `the text is not UTF-8; it was read as ${label}: ${shown(bytes, label)}. If that is wrong, name the encoding in the mapping (\`encoding\`), or save the file as UTF-8.`,
  });
  return label;
}

/** What words do not have: a capital behind a small letter, a sign between letters, letters of two alphabets. ASCII is the same everywhere, and says nothing. */
const odd =
  /(?<=\p{Ll})(?!\p{ASCII})\p{Lu}|(?<=\p{L})[^\p{ASCII}\p{L}\p{M}\p{P}]|[^\p{ASCII}\p{L}\p{M}\p{P}](?=\p{L})|(?<=\p{L})[†‡‰¿¡§¶](?=\p{L})|(?<=\p{sc=Latn})[\p{sc=Cyrl}\p{sc=Grek}]|[\p{sc=Cyrl}\p{sc=Grek}](?=\p{sc=Latn})/gu;

/**
 * The encodings by which the bytes read like words. The detector weighs frequencies of letters, and confuses encodings that differ in a few
 * accents; by the wrong one `für` is `fŸr`, `f¸r` or `fьr`. Mac OS Roman counts only where windows-1252 makes no words.
 */
function plausible(bytes: Buffer, found: ReadonlyMap<string, number>): [label: string, confidence: number][] {
  const shares = new Map<string, number>();
  for (const label of found.keys()) {
    const text = new TextDecoder(label).decode(bytes);
    const others = text.match(/\P{ASCII}/gu)?.length ?? 0;
    shares.set(label, (text.match(odd)?.length ?? 0) / Math.max(1, others));
  }
  const best = Math.min(...shares.values());
  const left = [...found].filter(([label]) => (shares.get(label) ?? 0) <= best + mostOdd);
  const isWindows = left.some(([label]) => label === "windows-1252");
  return left.filter(([label]) => !(label === "macintosh" && isWindows));
}

/** Results come with the names that Python has. */
function whatwg(name: string): string | undefined {
  try {
    return new TextDecoder(name).encoding;
  } catch {
    return labels[name.toLowerCase()];
  }
}

/** Whether the bytes can be text of this encoding. */
function fits(bytes: Buffer, label: string, isWhole: boolean): boolean {
  try {
    const text = new TextDecoder(label, { fatal: true }).decode(bytes, { stream: !isWhole });
    // Codes that no text has, to which single-byte encodings map what they do not define.
    return !/[\u0080-\u009F\uE000-\uF8FF]/.test(text);
  } catch {
    return false;
  }
}

const saysTheSame = (bytes: Buffer, one: string, other: string): boolean =>
  new TextDecoder(one).decode(bytes) === new TextDecoder(other).decode(bytes);

/** The first words that are not ASCII, so that a person sees whether the encoding is right. */
function shown(bytes: Buffer, label: string): string {
  const words = new TextDecoder(label).decode(bytes).split(/[\s"',;|]+/);
  return words
    .filter((word) => /[^\p{ASCII}]/u.test(word))
    .slice(0, 3)
    .map((word) => `"${word.slice(0, 20).toWellFormed()}"`)
    .join(", ");
}

async function* decoded(source: AsyncIterable<Uint8Array>, label: string): AsyncGenerator<Uint8Array, void, undefined> {
  const decoder = new TextDecoder(label);
  for await (const chunk of source) yield marked(decoder.decode(chunk, { stream: true }));
  yield marked(decoder.decode());
}

function marked(text: string): Uint8Array {
  const bytes = Buffer.from(text, "utf8");
  if (!text.includes("\uFFFD")) return bytes;
  const parts = text.split("\uFFFD");
  return Buffer.concat(parts.flatMap((part, index) => (index === 0 ? [Buffer.from(part)] : [Buffer.from([broken]), Buffer.from(part)])));
}
