/**
 * Byte-level BPE, several times as fast as the official package, for the tokenizers and texts for which it is proven equal.
 *
 * Its ids are those of `tokenizers` because it supports only pre-tokenizers that it knows by their exact pattern, and only texts of
 * code points whose class (letter, number, blank) has been the same in many versions of Unicode. A test compares every one of these
 * code points with the official package. For all other texts `encode` returns undefined, and the official package encodes them. Pure.
 */

/** The parts of a tokenizer.json that are used here. */
export interface BpeFile {
  readonly normalizer?: unknown;
  readonly pre_tokenizer?: unknown;
  readonly model: Readonly<Record<string, unknown>>;
}
export interface AddedToken {
  readonly id: number;
  readonly content: string;
  readonly single_word: boolean;
  readonly lstrip: boolean;
  readonly rstrip: boolean;
  readonly normalized: boolean;
}

interface ByteLevelBpe {
  /**
   * Makes an encoder that finds these tokens in texts as a whole; undefined when that cannot be done exactly. The encoder returns
   * undefined for a text that it does not support.
   */
  withAdded(added: readonly AddedToken[]): ((text: string) => Int32Array | undefined) | undefined;
}

/* --- supported texts --- */

/** Ranges (first and last code point): letters of Unicode 10, and everything that is neither letter nor number nor blank in any version. */
const allowed: readonly (readonly [number, number])[] = [
  [0x01, 0x7e],
  [0xa0, 0x24f],
  [0x300, 0x36f],
  [0x391, 0x3a1],
  [0x3a3, 0x3ff],
  [0x400, 0x481],
  [0x48a, 0x52f],
  [0x5d0, 0x5ea],
  [0x621, 0x64a],
  [0x660, 0x669],
  [0x904, 0x939],
  [0xe01, 0xe30],
  [0x1e00, 0x1eff],
  [0x2000, 0x2064],
  [0x2070, 0x2071],
  [0x2074, 0x208e],
  [0x20a0, 0x20bf],
  [0x2100, 0x218b],
  [0x2190, 0x2bff],
  [0x2e80, 0x2e99],
  [0x2e9b, 0x2ef3],
  [0x2f00, 0x2fd5],
  [0x3000, 0x303f],
  [0x3041, 0x3096],
  [0x309b, 0x309f],
  [0x30a0, 0x30ff],
  [0x3105, 0x312d],
  [0x3131, 0x318e],
  [0x3200, 0x321e],
  [0x3220, 0x4db5],
  [0x4e00, 0x9fea],
  [0xac00, 0xd7a3],
  [0xf900, 0xfa6d],
  [0xfe00, 0xfe0f],
  [0xfe30, 0xfe52],
  [0xff01, 0xffbe],
  [0xffe0, 0xffe6],
  [0xfffd, 0xfffd],
  [0x1f000, 0x1f0ff],
  [0x1f300, 0x1fbef],
  [0x20000, 0x2a6d6],
  [0x2a700, 0x2b734],
  [0x2b740, 0x2b81d],
  [0x2b820, 0x2cea1],
  [0x2ceb0, 0x2ebe0],
  [0x2f800, 0x2fa1d],
];

/** Every code point that texts may hold, for the test that compares them. */
export function* allowedCodePoints(): Generator<number> {
  for (const [first, last] of allowed) for (let code = first; code <= last; code++) yield code;
}

/** By code point: 0 not supported, 1 supported, 2 supported, but NFC may change it or the code point before it. */
const classes: Uint8Array = (() => {
  const table = new Uint8Array(0x30000);
  for (const code of allowedCodePoints()) {
    const character = String.fromCodePoint(code);
    const inert = code < 0x300 || (character.normalize("NFC") === character && !/\p{M}/u.test(character));
    table[code] = inert ? 1 : 2;
  }
  return table;
})();

/** Whether a text is supported, and whether it must be normalised if the tokenizer normalises. */
function classify(text: string): 0 | 1 | 2 {
  let result: 1 | 2 = 1;
  for (let i = 0; i < text.length; i++) {
    let code = text.charCodeAt(i);
    if (code >= 0xd800 && code < 0xdc00) code = text.codePointAt(i++) as number;
    const found = classes[code];
    if (found === 2) result = 2;
    else if (found !== 1) return 0;
  }
  return result;
}

/* --- supported pre-tokenizers --- */

const gpt2 = String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`;
/** Each digit is a part of its own, and ends the part before it. */
const gpt2Digits = String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+`;
const qwen2 = String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`;
const llama3 = String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`;

/** @returns the pattern of the parts; undefined when the pre-tokenizer is not supported. */
function patternOf(step: unknown): string | undefined {
  const is = (value: unknown, expected: Readonly<Record<string, unknown>>): boolean =>
    typeof value === "object" &&
    value !== null &&
    Object.entries(expected).every(([key, wanted]) => JSON.stringify((value as Record<string, unknown>)[key]) === JSON.stringify(wanted));
  const byteLevel = (use_regex: boolean) => ({ type: "ByteLevel", add_prefix_space: false, use_regex });
  if (is(step, byteLevel(true))) return gpt2;
  if (!is(step, { type: "Sequence" })) return undefined;
  const [first, second, more] = (step as { pretokenizers?: unknown[] }).pretokenizers ?? [];
  if (more !== undefined) return undefined;
  if (is(first, { type: "Digits", individual_digits: true }) && is(second, byteLevel(true))) return gpt2Digits;
  if (!is(first, { type: "Split", behavior: "Isolated", invert: false }) || !is(second, byteLevel(false))) return undefined;
  return [qwen2, llama3].find((pattern) => is(first, { pattern: { Regex: pattern } }));
}

/* --- the model --- */

/** Bytes to the characters that stand for them in the vocabulary: printable bytes stand for themselves, the others begin at U+0100. */
const byteCharacters: readonly string[] = (() => {
  const printable = (byte: number): boolean => (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : next++));
})();

/** Limit of ids and ranks, so that a slot of `PairRanks` holds three of them in two numbers. Today's largest vocabularies fit. */
const mostIds = 1 << 18;

/** Pairs of ids to the rank of their merge, by open addressing. The table is small, because the cost of a look-up is the access to memory. */
class PairRanks {
  /** Two numbers each: left and the low 14 bits of right; the high 4 bits of right and the rank. -1: free. */
  readonly #slots: Int32Array;
  readonly #mask: number;
  constructor(count: number) {
    const size = 2 ** Math.ceil(Math.log2(count * 1.5 + 16));
    this.#slots = new Int32Array(size * 2).fill(-1);
    this.#mask = size - 1;
  }
  set(left: number, right: number, rank: number): void {
    const slots = this.#slots;
    const low = left | (right << 18);
    const high = right >>> 14;
    let slot = hashOf(left, right) & this.#mask;
    // If a pair is listed twice, the later rank counts, as in a map.
    while (slots[slot * 2 + 1] !== -1 && !(slots[slot * 2] === low && ((slots[slot * 2 + 1] as number) & 15) === high)) {
      slot = (slot + 1) & this.#mask;
    }
    slots[slot * 2] = low;
    slots[slot * 2 + 1] = (rank << 4) | high;
  }
  /** @returns the rank; `noMerge` when the two ids do not merge. */
  get(left: number, right: number): number {
    const slots = this.#slots;
    const low = left | (right << 18);
    const high = right >>> 14;
    for (let slot = hashOf(left, right) & this.#mask; ; slot = (slot + 1) & this.#mask) {
      const second = slots[slot * 2 + 1] as number;
      if (second === -1) return noMerge;
      if (slots[slot * 2] === low && (second & 15) === high) return second >> 4;
    }
  }
}
/**
 * A cache of words with their ids. A Map of strings would need a new string for each look-up and access memory in four places. This
 * table accesses it in two, and memory access is the cost of a look-up.
 */
class KnownWords {
  /** Four numbers each: hash (0: free), place of its characters, how many characters (high) and ids (low), the id or the place of the ids. */
  #slots = new Int32Array(knownWords * 2 * 4);
  #count = 0;
  #characters = new Uint16Array(1 << 16);
  #charactersEnd = 0;
  #ids = new Int32Array(1 << 16);
  #idsEnd = 0;
  #hash = 0;

  /** @returns the word's slot; ~(a free slot) when the word is not in the table. */
  find(text: string, start: number, end: number): number {
    let hash = 0x811c9dc5;
    for (let i = start; i < end; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
    hash = (hash ^ (hash >>> 15)) | 1;
    this.#hash = hash;
    const slots = this.#slots;
    const mask = knownWords * 2 - 1;
    for (let slot = (hash >>> 1) & mask; ; slot = (slot + 1) & mask) {
      const found = slots[slot * 4];
      if (found === 0) return ~slot;
      if (
        found === hash &&
        (slots[slot * 4 + 2] as number) >>> 8 === end - start &&
        this.#same(slots[slot * 4 + 1] as number, text, start, end)
      )
        return slot;
    }
  }
  #same(place: number, text: string, start: number, end: number): boolean {
    for (let i = start; i < end; i++) if (this.#characters[place + i - start] !== text.charCodeAt(i)) return false;
    return true;
  }
  counts(slot: number): number {
    return (this.#slots[slot * 4 + 2] as number) & 0xff;
  }
  read(slot: number, into: Int32Array, at: number): void {
    const n = this.counts(slot);
    const value = this.#slots[slot * 4 + 3] as number;
    if (n === 1) into[at] = value;
    else for (let i = 0; i < n; i++) into[at + i] = this.#ids[value + i] as number;
  }
  /** Adds a word. Call it right after `find` has not found the word. */
  add(slot: number, text: string, start: number, end: number, ids: Int32Array, n: number): void {
    if (this.#count >= knownWords) {
      // A full table is emptied, which is simpler than choosing words to drop. Frequent words are soon back.
      this.#slots.fill(0);
      this.#count = this.#charactersEnd = this.#idsEnd = 0;
      return;
    }
    if (this.#charactersEnd + end - start > this.#characters.length) this.#characters = grown(this.#characters);
    if (this.#idsEnd + n > this.#ids.length) this.#ids = grown(this.#ids);
    this.#slots[slot * 4] = this.#hash;
    this.#slots[slot * 4 + 1] = this.#charactersEnd;
    this.#slots[slot * 4 + 2] = ((end - start) << 8) | n;
    this.#slots[slot * 4 + 3] = n === 1 ? (ids[0] as number) : this.#idsEnd;
    for (let i = start; i < end; i++) this.#characters[this.#charactersEnd++] = text.charCodeAt(i);
    if (n > 1) for (let i = 0; i < n; i++) this.#ids[this.#idsEnd++] = ids[i] as number;
    this.#count++;
  }
}

function grown<T extends Uint16Array | Int32Array>(array: T): T {
  const larger = new (array.constructor as new (length: number) => T)(array.length * 2);
  larger.set(array);
  return larger;
}

const noMerge = 0x7fffffff;
const hashOf = (left: number, right: number): number => {
  const h = Math.imul(left, 0x9e3779b1) ^ Math.imul(right, 0x85ebca6b);
  return h ^ (h >>> 15);
};

/** Below this many symbols, looking at all of them for the best merge is faster than a heap. */
const fewSymbols = 80;
/** Longer words are left to the official package, so that an entry stays small. */
const longestWord = 1 << 20;
/** Longest word that is remembered, in characters. For ideographs it is less, because a longer run of them rarely comes again. */
const knownLength = 16;
const knownIdeographs = 5;
const firstIdeograph = 0x2e80;
const knownWords = 1 << 17;

/** Whether a tokenizer looks supported. A cheap check; `createByteLevelBpe` decides. */
export function isByteLevelBpe({ normalizer, pre_tokenizer, model }: BpeFile): boolean {
  if (normalizer !== null && normalizer !== undefined && !isNfc(normalizer)) return false;
  const { type, dropout, unk_token, continuing_subword_prefix, end_of_word_suffix, fuse_unk, byte_fallback } = model;
  const absent = (value: unknown): boolean => value === null || value === undefined || value === "" || value === false;
  const features = [dropout, unk_token, continuing_subword_prefix, end_of_word_suffix, fuse_unk, byte_fallback];
  return patternOf(pre_tokenizer) !== undefined && type === "BPE" && features.every(absent) && Array.isArray(model["merges"]);
}
const isNfc = (normalizer: unknown): boolean => (normalizer as { type?: string } | null | undefined)?.type === "NFC";

/** Takes a third of a second for a large vocabulary. @returns undefined when the tokenizer is not supported. */
export function createByteLevelBpe(file: BpeFile): ByteLevelBpe | undefined {
  const { normalizer, pre_tokenizer, model } = file;
  const pattern = patternOf(pre_tokenizer);
  if (pattern === undefined || !isByteLevelBpe(file)) return undefined;
  const composed = isNfc(normalizer);
  const { ignore_merges } = model;
  const vocab = new Map(Object.entries(model["vocab"] as Readonly<Record<string, number>>));
  const merges = model["merges"] as readonly (string | readonly [string, string])[];
  if (vocab.values().some((id) => !(id >= 0 && id < mostIds)) || merges.length >= mostIds) return undefined;
  /** -1: the vocabulary lacks the byte. Some vocabularies lack bytes that texts of their languages do not have. */
  const byteIds = Int32Array.from(byteCharacters, (character) => vocab.get(character) ?? -1);
  const ranks = new PairRanks(merges.length);
  const merged = new Int32Array(merges.length);
  const tokens: string[] = [];
  for (const [token, id] of vocab) tokens[id] = token;
  let guess = 0;
  for (const [rank, merge] of merges.entries()) {
    const [left, right] = typeof merge === "string" ? (merge.split(" ") as [string, string]) : merge;
    const [leftId, rightId] = [vocab.get(left), vocab.get(right)];
    // Merges usually stand in the order of their ids. Checking that is faster than joining the two texts and asking the map.
    guess++;
    const token = tokens[guess];
    const isIt = token?.length === left.length + right.length && token.startsWith(left) && token.endsWith(right);
    const id = isIt ? guess : vocab.get(left + right);
    if (leftId === undefined || rightId === undefined || id === undefined) return undefined;
    ranks.set(leftId, rightId, rank);
    merged[rank] = guess = id;
  }

  const joins = findJoins([...vocab.keys()]);
  /** For each character of three bytes: the number of its symbols when it stands alone (0: not computed yet), and the symbols. */
  const ownCounts = new Uint8Array(0x10000);
  const ownSymbols = new Int32Array(0x10000 * 3);
  const reduce = (code: number): number => {
    const own = [0xe0 | (code >> 12), 0x80 | ((code >> 6) & 63), 0x80 | (code & 63)].map((byte) => byteIds[byte] as number);
    for (;;) {
      const order = own.slice(1).map((id, at) => ranks.get(own[at] as number, id));
      const best = Math.min(noMerge, ...order);
      if (best === noMerge) break;
      own.splice(order.indexOf(best), 2, merged[best] as number);
    }
    ownSymbols.set(own, code * 3);
    return (ownCounts[code] = own.length);
  };

  const parts = new RegExp(pattern, "yu");
  const known = new KnownWords();

  let out = new Int32Array(1 << 14);
  let outEnd = 0;
  const reserve = (more: number): void => {
    if (outEnd + more <= out.length) return;
    const larger = new Int32Array(Math.max(out.length * 2, outEnd + more));
    larger.set(out.subarray(0, outEnd));
    out = larger;
  };

  // Symbols of the current word, and the rank of each one with its successor.
  let symbols = new Int32Array(256);
  let pairs = new Int32Array(256);
  const spell = (text: string, start: number, end: number): number => {
    if (symbols.length < (end - start) * 3) {
      symbols = new Int32Array((end - start) * 4);
      pairs = new Int32Array(symbols.length);
    }
    let n = 0;
    for (let i = start; i < end; i++) {
      let code = text.charCodeAt(i);
      if (code < 0x80) {
        symbols[n++] = byteIds[code] as number;
        continue;
      }
      if (code < 0x800) {
        symbols[n++] = byteIds[0xc0 | (code >> 6)] as number;
        symbols[n++] = byteIds[0x80 | (code & 63)] as number;
      } else if (code < 0xd800 || code > 0xdfff) {
        const before = i === start ? 0 : text.charCodeAt(i - 1);
        const after = i + 1 === end ? 0 : text.charCodeAt(i + 1);
        if (!joins.touch(code, before, after)) {
          const own = (ownCounts[code] as number) || reduce(code);
          for (let k = 0; k < own; k++) symbols[n++] = ownSymbols[code * 3 + k] as number;
          continue;
        }
        symbols[n++] = byteIds[0xe0 | (code >> 12)] as number;
        symbols[n++] = byteIds[0x80 | ((code >> 6) & 63)] as number;
        symbols[n++] = byteIds[0x80 | (code & 63)] as number;
      } else {
        code = 0x10000 + ((code - 0xd800) << 10) + (text.charCodeAt(++i) - 0xdc00);
        symbols[n++] = byteIds[0xf0 | (code >> 18)] as number;
        symbols[n++] = byteIds[0x80 | ((code >> 12) & 63)] as number;
        symbols[n++] = byteIds[0x80 | ((code >> 6) & 63)] as number;
        symbols[n++] = byteIds[0x80 | (code & 63)] as number;
      }
    }
    return n;
  };

  /** Merges the pair with the lowest rank (the first of equal ones) until none is left. @returns how many symbols remain. */
  const mergeFew = (count: number): number => {
    let n = count;
    for (let i = 0; i + 1 < n; i++) pairs[i] = ranks.get(symbols[i] as number, symbols[i + 1] as number);
    for (;;) {
      let best = noMerge;
      let at = -1;
      for (let i = 0; i + 1 < n; i++) {
        if ((pairs[i] as number) < best) {
          best = pairs[i] as number;
          at = i;
        }
      }
      if (at === -1) return n;
      symbols[at] = merged[best] as number;
      n--;
      for (let i = at + 1; i < n; i++) {
        symbols[i] = symbols[i + 1] as number;
        pairs[i] = pairs[i + 1] as number;
      }
      if (at > 0) pairs[at - 1] = ranks.get(symbols[at - 1] as number, symbols[at] as number);
      if (at + 1 < n) pairs[at] = ranks.get(symbols[at] as number, symbols[at + 1] as number);
    }
  };

  /** Does the same as `mergeFew`, with a heap of (rank, place) and links between the remaining symbols. */
  const mergeMany = (n: number): number => {
    const next = Int32Array.from({ length: n }, (_, i) => i + 1);
    const before = Int32Array.from({ length: n }, (_, i) => i - 1);
    const heap = createHeap(n);
    const push = (place: number): void => {
      const follower = next[place] as number;
      const rank = follower < n ? ranks.get(symbols[place] as number, symbols[follower] as number) : noMerge;
      pairs[place] = rank;
      if (rank !== noMerge) heap.push(rank * longestWord * 4 + place);
    };
    for (let i = 0; i < n; i++) push(i);
    for (let key = heap.pop(); key !== undefined; key = heap.pop()) {
      const place = key % (longestWord * 4);
      const rank = (key - place) / (longestWord * 4);
      // The entry is outdated: its symbol was merged, or has another neighbour now.
      if (symbols[place] === -1 || pairs[place] !== rank) continue;
      const gone = next[place] as number;
      symbols[place] = merged[rank] as number;
      symbols[gone] = -1;
      const follower = next[gone] as number;
      next[place] = follower;
      if (follower < n) before[follower] = place;
      push(place);
      const previous = before[place] as number;
      if (previous >= 0) push(previous);
    }
    let left = 0;
    for (let i = 0; i < n; i++) if (symbols[i] !== -1) symbols[left++] = symbols[i] as number;
    return left;
  };

  /** Appends the ids of a word. @returns false when the word is not supported. */
  const encodeWord = (text: string, start: number, end: number): boolean => {
    const slot =
      end - start <= (text.charCodeAt(end - 1) < firstIdeograph ? knownLength : knownIdeographs) ? known.find(text, start, end) : -1;
    if (slot >= 0) {
      const n = known.counts(slot);
      reserve(n);
      known.read(slot, out, outEnd);
      outEnd += n;
      return true;
    }
    let n = spell(text, start, end);
    if (symbols.subarray(0, n).includes(-1)) return false;
    const entry = ignore_merges === true ? vocab.get(byteSpelling(text.slice(start, end))) : undefined;
    if (entry !== undefined) {
      symbols[0] = entry;
      n = 1;
    } else if (n > 1) {
      n = n < fewSymbols ? mergeFew(n) : mergeMany(n);
    }
    reserve(n);
    for (let i = 0; i < n; i++) out[outEnd++] = symbols[i] as number;
    if (slot !== -1) known.add(~slot, text, start, end, symbols, n);
    return true;
  };

  /** Encodes a part without added tokens. @returns false when it is not supported. */
  const encodeStretch = (stretch: string, normalise: boolean): boolean => {
    const text = normalise ? stretch.normalize("NFC") : stretch;
    if (normalise && classify(text) === 0) return false;
    for (let at = 0; at < text.length;) {
      parts.lastIndex = at;
      if (!parts.test(text)) return false;
      const end = parts.lastIndex;
      if (end - at > longestWord) return false;
      if (!encodeWord(text, at, end)) return false;
      at = end;
    }
    return true;
  };

  return {
    withAdded(added) {
      if (added.some((token) => token.lstrip || token.rstrip || token.single_word || token.normalized || token.content === ""))
        return undefined;
      const ids = new Map(added.map((token) => [token.content, token.id]));
      // If several tokens begin at one place, the longest one counts.
      const spellings = [...ids.keys()].sort((a, b) => b.length - a.length).map((content) => RegExp.escape(content));
      const tokens = new RegExp(spellings.length === 0 ? "[]" : spellings.join("|"), "g");
      return (text) => {
        const found = classify(text);
        if (found === 0) return undefined;
        const normalise = composed && found === 2;
        outEnd = 0;
        let at = 0;
        tokens.lastIndex = 0;
        for (let match = tokens.exec(text); match !== null; match = tokens.exec(text)) {
          if (match.index > at && !encodeStretch(text.slice(at, match.index), normalise)) return undefined;
          reserve(1);
          out[outEnd++] = ids.get(match[0]) as number;
          at = tokens.lastIndex;
        }
        if (at < text.length && !encodeStretch(at === 0 ? text : text.slice(at), normalise)) return undefined;
        return out.slice(0, outEnd);
      };
    },
  };
}

const byteSpelling = (word: string): string => Array.from(new TextEncoder().encode(word), (byte) => byteCharacters[byte]).join("");

/**
 * Whether an entry of the vocabulary has a part of a character together with bytes of its neighbours. If none has, merges within the
 * character and merges around it do not influence each other, so all its own merges can be done first.
 */
function findJoins(entries: readonly string[]): { touch(code: number, before: number, after: number): boolean } {
  /** Indexed by code unit. */
  const byteOf: number[] = [];
  for (const [byte, character] of byteCharacters.entries()) byteOf[character.charCodeAt(0)] = byte;
  const isContinuation = (byte: number): boolean => byte >= 0x80 && byte < 0xc0;
  // Bit sets, so that they stay in the CPU's cache. One is indexed by the last byte before a character and its first two bytes, the
  // other by the first byte after a character and its last two bytes.
  const fronts = new Uint32Array((256 * 0x400) / 32);
  const backs = new Uint32Array((256 * 0x1000) / 32);
  const mark = (bits: Uint32Array, index: number): void => {
    bits[index >> 5] = (bits[index >> 5] as number) | (1 << (index & 31));
  };
  const isMarked = (bits: Uint32Array, index: number): boolean => (((bits[index >> 5] as number) >>> (index & 31)) & 1) === 1;
  const bytes = new Uint8Array(entries.reduce((longest, entry) => Math.max(longest, entry.length), 0));
  for (const entry of entries) {
    const length = entry.length;
    for (let at = 0; at < length; at++) bytes[at] = byteOf[entry.charCodeAt(at)] ?? 0;
    let first = 0;
    while (first < length && isContinuation(bytes[first] as number)) first++;
    if (first > 0 && first < length) {
      const next = bytes[first] as number;
      const last = (bytes[first - 1] as number) & 63;
      if (first > 1) mark(backs, (next << 12) | (((bytes[first - 2] as number) & 63) << 6) | last);
      else for (let middle = 0; middle < 64; middle++) mark(backs, (next << 12) | (middle << 6) | last);
    }
    let start = length - 1;
    while (start > 0 && isContinuation(bytes[start] as number)) start--;
    const lead = bytes[start] as number;
    if (start > 0 && lead >= 0xe0 && lead < 0xf0 && length - start < 3) {
      const previous = bytes[start - 1] as number;
      const row = (lead & 15) << 6;
      if (length - start === 2) mark(fronts, (previous << 10) | row | ((bytes[start + 1] as number) & 63));
      else for (let middle = 0; middle < 64; middle++) mark(fronts, (previous << 10) | row | middle);
    }
  }
  // The neighbours' code units are enough: each half of a surrogate pair determines the needed bytes.
  const lastByte = (unit: number): number => (unit < 0x80 ? unit : 0x80 | (unit & 63));
  const firstByte = (unit: number): number =>
    unit < 0x80 ? unit : unit < 0x800 ? 0xc0 | (unit >> 6) : unit < 0xd800 || unit > 0xdfff ? 0xe0 | (unit >> 12) : 0xf0;
  return {
    touch: (code, before, after) =>
      isMarked(fronts, (lastByte(before) << 10) | (code >> 6)) || isMarked(backs, (firstByte(after) << 12) | (code & 0xfff)),
  };
}

/** A heap with the smallest number first. */
function createHeap(capacity: number): { push(key: number): void; pop(): number | undefined } {
  let keys = new Float64Array(capacity * 2);
  let size = 0;
  return {
    push(key) {
      if (size === keys.length) {
        const larger = new Float64Array(size * 2 + 16);
        larger.set(keys);
        keys = larger;
      }
      let at = size++;
      while (at > 0) {
        const parent = (at - 1) >> 1;
        if ((keys[parent] as number) <= key) break;
        keys[at] = keys[parent] as number;
        at = parent;
      }
      keys[at] = key;
    },
    pop() {
      if (size === 0) return undefined;
      const top = keys[0] as number;
      const last = keys[--size] as number;
      let at = 0;
      for (;;) {
        let child = at * 2 + 1;
        if (child >= size) break;
        if (child + 1 < size && (keys[child + 1] as number) < (keys[child] as number)) child++;
        if ((keys[child] as number) >= last) break;
        keys[at] = keys[child] as number;
        at = child;
      }
      keys[at] = last;
      return top;
    },
  };
}
