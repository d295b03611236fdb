/** Pure: the engines that a tenant may use, with their state and with advice. */
import type { EngineView } from "@loraline/contracts";
import { decideAdvice } from "./decide-advice.ts";
import { enginesFor, type RoutingView } from "../inference/decide-route.ts";
import type { WorkingSet } from "../inference/working-set.ts";

export function enginesOf(view: RoutingView, { asked, windowMs }: Pick<WorkingSet, "asked" | "windowMs">, tenant: string): EngineView[] {
  return enginesFor(view, tenant).map((engine) => {
    const replicas = view.replicas
      .filter(({ state, fresh }) => fresh && state.engine === engine.engine)
      .map(({ state: { replica, ready, incarnation, counts, problem } }) => ({ replica, ready, incarnation, counts, problem }))
      .toSorted((a, b) => (a.replica < b.replica ? -1 : 1));
    const versions = [...view.adapters.values()]
      .filter((adapter) => adapter.engine === engine.engine)
      .flatMap((adapter) => adapter.versions.filter(({ status }) => status === "desired"));
    const names = new Set(versions.map(({ engineName }) => engineName));
    const adapters = [...asked(engine.engine)].filter((name) => names.has(name)).length;
    const advice = decideAdvice({
      engine,
      replicas: replicas.map(({ ready, counts }) => ({ ready, quarantined: (counts?.quarantined ?? 0) + (counts?.refused ?? 0) })),
      versions: versions.map(({ rank, unplaced }) => ({ rank, unplaced: Boolean(unplaced) })),
      asked: adapters,
      windowMs,
    });
    const { maxLoraRank, maxLoras, maxCpuLoras, maxModelLen } = engine;
    return {
      engine: engine.engine,
      base: engine.base.name,
      maxLoraRank,
      maxLoras,
      maxCpuLoras,
      maxModelLen,
      replicas,
      versions: versions.length,
      asked: { adapters, windowMs },
      advice,
    };
  });
}
