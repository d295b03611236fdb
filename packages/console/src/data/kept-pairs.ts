/** What somebody chose in the playground outlives a reload of the page, and neither the tab nor the sign-out. */
const key = "loraline.pairs";

export const keptPairs = {
  read<T>(): readonly T[] {
    try {
      return JSON.parse(sessionStorage.getItem(key) ?? "[]") as T[];
    } catch {
      return [];
    }
  },
  /** A browser may forbid storage; then they last as long as the page. */
  write(pairs: readonly unknown[]): void {
    try {
      if (pairs.length === 0) sessionStorage.removeItem(key);
      else sessionStorage.setItem(key, JSON.stringify(pairs));
    } catch {
      // As above.
    }
  },
};
