/** Pure: which engines serve adapters of a base: those of the base itself, and those of its twins. */
import type { BaseRef, EngineRecord } from "@loraline/contracts";

type Serving = Pick<EngineRecord, "base" | "derivedFrom">;

/** Engines for runs on a base, by its name: its own, or, where it has none, those whose base was made of it. */
export function enginesServing<E extends Serving>(engines: readonly E[], base: string): E[] {
  const own = engines.filter((engine) => engine.base.name === base);
  return own.length > 0 ? own : engines.filter(({ derivedFrom }) => derivedFrom?.name === base);
}

/** What an adapter's base is to what an engine serves; undefined: another base. */
export function kinship({ base, derivedFrom }: Serving, of: Pick<BaseRef, "name" | "digest">): "same" | "twin" | undefined {
  if (base.name === of.name && base.digest === of.digest) return "same";
  return derivedFrom?.name === of.name && derivedFrom.digest === of.digest ? "twin" : undefined;
}
