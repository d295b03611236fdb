/**
 * What an agent remembers of adapters on its engine, beyond what the engine lists: which are proven, refused or failing, which have to
 * go, and whose files are spoiled. It is kept in memory only: a new agent proves everything again.
 */
import type { Problem, Proof, ReplicaAdapter } from "@loraline/contracts";
import { decideFault, type Fault, type HeldAdapter, type Leaving } from "./decide-adapters.ts";

export interface RememberedAdapter extends HeldAdapter {
  /** Faults in a row. */
  attempts: number;
  blame: ReplicaAdapter["blame"];
  proof: Proof | null;
  error: Problem | null;
  /** Since when it is in this state, ISO 8601. */
  at: string;
}

interface LeavingAdapter extends Leaving {
  /** Unloads that failed. */
  attempts: number;
  /** Why the last unload failed. */
  error: Problem | null;
}

export interface AdapterMemory {
  readonly held: ReadonlyMap<string, RememberedAdapter>;
  /** Adapters that the engine lists and that have to go. */
  readonly leaving: ReadonlyMap<string, LeavingAdapter>;
  /** Adapters whose files on disk are not what was published, and since when: ms since the epoch, 0: no request can be using them. */
  readonly spoiled: ReadonlyMap<string, number>;
  /** What is remembered of an adapter, unless that was in another engine process. */
  currentOf(loraName: string): RememberedAdapter | undefined;
  /** The engine took a load that this agent asked for. */
  loaded(loraName: string): void;
  /** A proof ended. */
  judged(loraName: string, result: { state: "proven" | "refused"; proof: Proof; error: Problem | null; incarnation: string }): void;
  /** A load or a proof failed. Returns what becomes of the adapter. */
  failed(
    loraName: string,
    fault: Fault,
  ): Pick<RememberedAdapter, "state" | "blame" | "attempts"> & {
    /** How long it rests, ms. */
    afterMs: number;
  };
  /** It has to go, from now on. Nothing changes for one that has to go already. */
  leave(loraName: string): void;
  /** It is wanted again. */
  stay(loraName: string): void;
  unloaded(loraName: string): void;
  /** Returns when the unload is tried again. */
  unloadFailed(loraName: string, error: Problem): { attempts: number; afterMs: number };
  spoil(loraName: string, since: number): void;
  /** Its files are about to be fetched again. */
  unspoil(loraName: string): void;
  /** Whatever was found out about it does not count any more. */
  forget(loraName: string): void;
  /** The engine answers, after it was away: most often another process, which lists nothing yet. */
  engineReady(): void;
}

export function createAdapterMemory({ incarnation, now }: { incarnation(): string; now(): number }): AdapterMemory {
  const held = new Map<string, RememberedAdapter>();
  const leaving = new Map<string, LeavingAdapter>();
  const spoiled = new Map<string, number>();
  /**
   * Adapters that this agent loaded and that were never proven: no gateway was ever told of them, so nobody has to be waited for when they
   * go. Of other adapters, an earlier agent of this replica may have told.
   */
  const neverProven = new Set<string>();
  const remember = (name: string, what: Omit<RememberedAdapter, "at">): void => {
    held.set(name, { ...what, at: new Date(now()).toISOString() });
  };
  const currentOf = (name: string): RememberedAdapter | undefined => {
    const known = held.get(name);
    return known?.incarnation === incarnation() ? known : undefined;
  };
  return {
    held,
    leaving,
    spoiled,
    currentOf,
    loaded(name) {
      neverProven.add(name);
    },
    judged(name, result) {
      if (result.state === "proven") neverProven.delete(name);
      remember(name, { ...result, blame: null, attempts: 0, retryAt: 0 });
    },
    failed(name, fault) {
      const attempts = (currentOf(name)?.attempts ?? 0) + 1;
      const { state, blame, afterMs } = decideFault(fault, attempts);
      remember(name, {
        state,
        proof: null,
        error: fault.problem,
        blame,
        attempts,
        retryAt: now() + afterMs,
        incarnation: incarnation(),
      });
      return { state, blame, attempts, afterMs };
    },
    leave(name) {
      if (leaving.has(name)) return;
      leaving.set(name, { since: neverProven.has(name) ? 0 : now(), retryAt: 0, attempts: 0, error: null });
    },
    stay(name) {
      leaving.delete(name);
    },
    unloaded(name) {
      leaving.delete(name);
      spoiled.delete(name);
      neverProven.delete(name);
    },
    unloadFailed(name, error) {
      const known = leaving.get(name);
      const attempts = (known?.attempts ?? 0) + 1;
      const { afterMs } = decideFault({ of: "replica", problem: error }, attempts);
      leaving.set(name, { since: known?.since ?? 0, retryAt: now() + afterMs, attempts, error });
      return { attempts, afterMs };
    },
    spoil(name, since) {
      spoiled.set(name, since);
    },
    unspoil(name) {
      spoiled.delete(name);
    },
    forget(name) {
      held.delete(name);
    },
    engineReady() {
      spoiled.clear();
      neverProven.clear();
    },
  };
}
