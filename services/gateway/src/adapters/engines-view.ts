/** Pure: the engines that a tenant may use, with their state and with advice. */
import type { EngineView } from "@loraline/contracts";
import { decideAdvice } from "./decide-advice.ts";
import { enginesFor, type RoutingView } from "../inference/decide-route.ts";
import type { WorkingSet } from "../inference/working-set.ts";

export function enginesOf(view: RoutingView, { asked, windowMs }: Pick<WorkingSet, "asked" | "windowMs">, tenant: string): EngineView[] {
  return enginesFor(view, tenant).map((engine) => {
    const replicas = view
      .replicasOf(engine.engine)
      .replicas.filter(({ fresh }) => fresh)
      .map(({ state: { replica, ready, incarnation, counts, problem } }) => ({ replica, ready, incarnation, counts, problem }))
      .toSorted((a, b) => (a.replica < b.replica ? -1 : 1));
    const versions = view.versionsOn(engine.engine);
    const adapters = [...asked(engine.engine)].filter((name) => isDesired(view, name)).length;
    const advice = decideAdvice({
      engine,
      replicas: replicas.map(({ ready, counts }) => ({ ready, quarantined: (counts?.quarantined ?? 0) + (counts?.refused ?? 0) })),
      versions,
      asked: adapters,
      windowMs,
    });
    const { maxLoraRank, maxLoras, maxCpuLoras, maxModelLen, toolCallParser, pictures } = engine;
    return {
      engine: engine.engine,
      base: engine.base.name,
      derivedFrom: engine.derivedFrom?.name ?? null,
      maxLoraRank,
      maxLoras,
      maxCpuLoras,
      maxModelLen,
      toolCallParser,
      pictures: pictures ?? 0,
      wake: engine.wake ?? null,
      replicas,
      versions: versions.count,
      asked: { adapters, windowMs },
      advice,
    };
  });
}

/** Whether a name is the LoRA name of a desired version; a base's is not. It begins with tenant and adapter. */
function isDesired(view: RoutingView, loraName: string): boolean {
  const [, tenant = "", adapter = ""] = /^([^.]+)\.([^.]+)\./.exec(loraName) ?? [];
  return (
    view.adapter({ tenant, adapter })?.versions.some(({ engineName, status }) => engineName === loraName && status === "desired") ?? false
  );
}
