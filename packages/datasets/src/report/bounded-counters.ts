/** What a report counts with. All but `NumberSet` stay small however long the file is, and whatever stands in it. */
import type { Rec } from "@loraline/contracts";

/** Lines that are named of one finding. */
export const shownLines = 20;

/** A set of positive numbers that takes 16 to 32 bytes for each; JavaScript's Set takes 50. */
export class NumberSet {
  #slots = new Float64Array(4096);
  #count = 0;
  /** @returns false if the number was in the set already. */
  add(value: number): boolean {
    if (this.#count * 2 >= this.#slots.length) {
      const before = this.#slots;
      this.#slots = new Float64Array(before.length * 2);
      for (const one of before) if (one !== 0) this.#slots[this.#slotOf(one)] = one;
    }
    const slot = this.#slotOf(value);
    if (this.#slots[slot] === value) return false;
    this.#slots[slot] = value;
    this.#count++;
    return true;
  }
  has(value: number): boolean {
    return this.#slots[this.#slotOf(value)] === value;
  }
  #slotOf(value: number): number {
    const last = this.#slots.length - 1;
    // Ids are hashes, so they need no further hashing.
    let slot = Math.floor(value / 2 ** 20) & last;
    while (this.#slots[slot] !== 0 && this.#slots[slot] !== value) slot = (slot + 1) & last;
    return slot;
  }
}

/** Longer labels and names of columns are cut. */
const longestKey = 200;

export class Counts {
  readonly #counts = new Map<string, number>();
  readonly #most: number;
  /** @param most - most different keys that are counted; others are left out. */
  constructor(most = Number.POSITIVE_INFINITY) {
    this.#most = most;
  }
  get size(): number {
    return this.#counts.size;
  }
  add(given: string): void {
    // Keys come from the file. A long key would keep its whole row in memory.
    const key = given.length <= longestKey ? given : Buffer.from(`${given.slice(0, longestKey).toWellFormed()}…`).toString();
    if (this.#counts.size < this.#most || this.#counts.has(key)) this.#counts.set(key, (this.#counts.get(key) ?? 0) + 1);
  }
  sorted(): Record<string, number> {
    return Object.fromEntries([...this.#counts].sort(([a], [b]) => (a < b ? -1 : 1)));
  }
  largest(most: number): Record<string, number> {
    return Object.fromEntries([...this.#counts].sort(([a, x], [b, y]) => y - x || (a < b ? -1 : 1)).slice(0, most));
  }
}

export class Finding {
  readonly value: { count: number; lines: number[] } = { count: 0, lines: [] };
  add(line: number): void {
    this.value.count++;
    if (this.value.lines.length < shownLines) this.value.lines.push(line);
  }
}

export class Findings {
  readonly #byKind = new Map<string, Finding>();
  add(kind: string, line: number): void {
    let finding = this.#byKind.get(kind);
    if (finding === undefined) {
      // Spellings come from the file, so their number must be limited too.
      if (this.#byKind.size >= 50) return;
      finding = new Finding();
      this.#byKind.set(kind, finding);
    }
    finding.add(line);
  }
  get value(): Record<string, { count: number; lines: number[] }> {
    return Object.fromEntries([...this.#byKind].sort(([a], [b]) => (a < b ? -1 : 1)).map(([kind, finding]) => [kind, finding.value]));
  }
}

/** The records with the smallest hashes: as good as a random choice, but the same ones each time. */
export class LeastByHash {
  readonly #most: number;
  #kept: { id: number; record: Rec }[] = [];
  constructor(most: number) {
    this.#most = most;
  }
  add(id: number, record: Rec): void {
    if (this.#kept.length >= this.#most && id >= (this.#kept.at(-1)?.id ?? 0)) return;
    if (this.#kept.some((kept) => kept.id === id)) return;
    this.#kept.push({ id, record });
    this.#kept.sort((a, b) => a.id - b.id);
    this.#kept = this.#kept.slice(0, this.#most);
  }
  get records(): Rec[] {
    return this.#kept.map(({ record }) => record).sort((a, b) => a.meta.line - b.meta.line);
  }
}
