/**
 * Whether a replica counts as ready for Kubernetes: once everything that was wanted when its engine process began is proven, refused or
 * given up. What is wanted later does not count: a new version would take all replicas out at once.
 */
import type { Problem } from "@loraline/contracts";
import type { AdapterMemory } from "./adapters/adapter-memory.ts";
import type { WantedSet } from "./adapters/wanted-set.ts";

interface Readiness {
  /** The engine answers, and what is wanted is known. When it is a process that was not seen before, what is wanted now is waited for. */
  engineReady(): void;
  /** Why the replica is not ready, in words; undefined: it is. */
  unready(): string | undefined;
}

export function createReadiness({
  wanted,
  memory,
  engine,
  product,
  isLeaving,
}: {
  wanted: Pick<WantedSet, "adapters" | "isComplete">;
  memory: Pick<AdapterMemory, "currentOf">;
  engine: { readonly ready: boolean; readonly problem: Problem | null; readonly incarnation: string };
  /** What people call the engine: vLLM. */
  product: string;
  isLeaving(): boolean;
}): Readiness {
  /** LoRA names that were wanted when this engine process began, and of which it is not known yet what becomes of them. */
  let awaited: { incarnation: string; names: Set<string> } = { incarnation: "", names: new Set() };
  return {
    engineReady() {
      if (!wanted.isComplete || awaited.incarnation === engine.incarnation) return;
      awaited = { incarnation: engine.incarnation, names: new Set(wanted.adapters.keys()) };
    },
    unready() {
      if (isLeaving()) return "it is about to end";
      if (!engine.ready) return engine.problem?.message ?? `${product} does not answer yet`;
      if (!wanted.isComplete)
        return "it is not known yet which adapters this replica should hold: the serve controller has not written all of KV assignments";
      for (const name of awaited.names) {
        const state = memory.currentOf(name)?.state;
        if (!wanted.adapters.has(name) || (state !== undefined && state !== "retrying")) awaited.names.delete(name);
      }
      if (awaited.names.size === 0) return undefined;
      const first = [...awaited.names].slice(0, 3).map((name) => {
        const error = memory.currentOf(name)?.error;
        return error ? `${name} (${error.message})` : name;
      });
      const more = awaited.names.size > first.length ? ", …" : "";
      return `${awaited.names.size} of ${wanted.adapters.size} adapters are not proven yet: ${first.join(", ")}${more}`;
    },
  };
}
