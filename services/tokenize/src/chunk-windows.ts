/** How many chunks a run asks for before it needs them: with all at once, those of a big dataset would stand before every other tenant's. */

/** Of one tenant's runs together, in one process. It is more than a few replicas can have in hand, so that none of them waits for work. */
const perTenant = 24;
/** Of one run, whatever its tenant's others do. */
const atLeast = 2;

export interface ChunkWindows {
  /** A run begins; whoever disposes what is returned is done. */
  open(tenant: string): Disposable & {
    /** Chunks to ask for beyond the one that is read. */
    size(): number;
  };
}

export function createChunkWindows(): ChunkWindows {
  const runs = new Map<string, number>();
  return {
    open(tenant) {
      runs.set(tenant, (runs.get(tenant) ?? 0) + 1);
      return {
        size: () => Math.max(atLeast, Math.floor(perTenant / (runs.get(tenant) ?? 1))),
        [Symbol.dispose]() {
          const left = (runs.get(tenant) ?? 1) - 1;
          if (left === 0) runs.delete(tenant);
          else runs.set(tenant, left);
        },
      };
    },
  };
}
