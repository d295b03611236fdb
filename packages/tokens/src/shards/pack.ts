/**
 * Global best-fit decreasing bin packing. Pure.
 *
 * Packs all sequences at once and not in batches of a thousand, which saves the last percent of padding. Sequences are never
 * split. Time is O(n log32 capacity), about a tenth of a second for 200,000 lengths.
 */
import { permutation } from "./shuffle.ts";

/** Bin `b` holds the sequences `items[starts[b]] … items[starts[b + 1] - 1]`. */
export interface Bins {
  readonly count: number;
  readonly items: Int32Array;
  readonly starts: Int32Array;
}

/**
 * @param lengths - tokens of each sequence, from 1 to `capacity`.
 * @param seed - decides which of equally long sequences share a bin, and the order of the bins.
 */
export function pack(lengths: Int32Array, capacity: number, seed: number): Bins {
  const n = lengths.length;
  const byLength = longestFirst(lengths, capacity, seed);

  // Open bins by the room they have: a stack for each amount of room, and a set of the amounts that have a bin.
  const top = new Int32Array(capacity + 1).fill(-1);
  const below = new Int32Array(n);
  const rooms = new IntegerSet(capacity + 1);
  const binOf = new Int32Array(n);
  let count = 0;
  for (const item of byLength) {
    const length = lengths[item] as number;
    let room = rooms.atLeast(length);
    let bin: number;
    if (room === -1) {
      bin = count++;
      room = capacity;
    } else {
      bin = top[room] as number;
      top[room] = below[bin] as number;
      if (top[room] === -1) rooms.delete(room);
    }
    binOf[item] = bin;
    const left = room - length;
    if (left > 0) {
      below[bin] = top[left] as number;
      top[left] = bin;
      rooms.add(left);
    }
  }

  // Bins in a random order, so that the trainer does not meet the longest sequences first.
  const place = permutation(count, seed ^ 0x5bd1e995);
  const starts = new Int32Array(count + 1);
  for (const item of byLength) (starts[(place[binOf[item] as number] as number) + 1] as number)++;
  for (let bin = 0; bin < count; bin++) (starts[bin + 1] as number) += starts[bin] as number;
  const next = starts.slice();
  const items = new Int32Array(n);
  for (const item of byLength) {
    const bin = place[binOf[item] as number] as number;
    items[(next[bin] as number)++] = item;
  }
  return { count, items, starts };
}

/** Indices by falling length (counting sort); equal lengths in random order. */
function longestFirst(lengths: Int32Array, capacity: number, seed: number): Int32Array {
  const next = new Int32Array(capacity + 2);
  for (const [index, length] of lengths.entries()) {
    if (!(length >= 1 && length <= capacity)) throw new RangeError(`sequence ${index} has ${length} tokens; 1 to ${capacity} fit`);
    (next[capacity - length + 1] as number)++;
  }
  for (let i = 1; i < next.length; i++) (next[i] as number) += next[i - 1] as number;
  const sorted = new Int32Array(lengths.length);
  for (const item of permutation(lengths.length, seed)) {
    const key = capacity - (lengths[item] as number);
    sorted[(next[key] as number)++] = item;
  }
  return sorted;
}

/** Integers 0 … size - 1 as bits, with a tree of summaries above them. */
class IntegerSet {
  readonly #levels: Uint32Array[] = [];
  constructor(size: number) {
    let words = size;
    do {
      words = Math.ceil(words / 32);
      this.#levels.push(new Uint32Array(words));
    } while (words > 1);
  }
  add(value: number): void {
    let index = value;
    for (const level of this.#levels) {
      level[index >>> 5] = (level[index >>> 5] as number) | (1 << (index & 31));
      index >>>= 5;
    }
  }
  delete(value: number): void {
    let index = value;
    for (const level of this.#levels) {
      const word = (level[index >>> 5] as number) & ~(1 << (index & 31));
      level[index >>> 5] = word;
      if (word !== 0) return;
      index >>>= 5;
    }
  }
  /** The smallest member that is not below `value`; -1 when there is none. */
  atLeast(value: number): number {
    let index = value;
    for (let height = 0; height < this.#levels.length; height++) {
      const level = this.#levels[height] as Uint32Array;
      const word = index >>> 5 < level.length ? (level[index >>> 5] as number) & (-1 << (index & 31)) : 0;
      if (word !== 0) {
        let found = (index & ~31) | trailingZeros(word);
        for (let lower = height - 1; lower >= 0; lower--) {
          found = found * 32 + trailingZeros((this.#levels[lower] as Uint32Array)[found] as number);
        }
        return found;
      }
      index = (index >>> 5) + 1;
    }
    return -1;
  }
}

const trailingZeros = (word: number): number => 31 - Math.clz32(word & -word);
