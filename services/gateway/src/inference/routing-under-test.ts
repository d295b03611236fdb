/** For tests: a view for routing that finds everything by looking at everything, as the table's index must find it. */
import type { AdapterState, EngineRecord, RoutedAdapter } from "@loraline/contracts";
import { type Candidates, fewReplicas, preferenceOf, type ReplicaView } from "./decide-replicas.ts";
import type { RoutingView } from "./decide-route.ts";

export interface Everything {
  engines: readonly EngineRecord[];
  /** Key `<tenant>.<adapter>`. */
  adapters: ReadonlyMap<string, RoutedAdapter | AdapterState>;
  replicas: readonly ReplicaView[];
  random?: (() => number) | undefined;
}

export function viewByScan({ engines, adapters, replicas, random }: Everything): RoutingView {
  const all = [...adapters.values()];
  return {
    engines,
    engine: (name) => engines.find(({ engine }) => engine === name),
    enginesOf: (base) => engines.filter((engine) => engine.base.name === base),
    adapter: (named) => all.find(({ tenant, adapter }) => tenant === named.tenant && adapter === named.adapter),
    adaptersOf: (of) => all.filter(({ tenant }) => tenant === of),
    versionsOn(name) {
      const versions = all.filter(({ engine }) => engine === name).flatMap((adapter) => adapter.versions);
      const desired = versions.filter(({ status }) => status === "desired");
      return {
        count: desired.length,
        unplaced: desired.filter(({ unplaced }) => unplaced).length,
        highestRank: Math.max(0, ...desired.map(({ rank }) => rank)),
      };
    },
    replicasOf: (engine) =>
      candidatesOf(
        replicas.filter(({ state }) => state.engine === engine),
        replicas,
      ),
    provenOn: (loraName) =>
      candidatesOf(
        replicas.filter(({ proven }) => proven.has(loraName)),
        replicas,
      ),
    random,
  };
}

function candidatesOf(replicas: readonly ReplicaView[], all: readonly ReplicaView[]): Candidates {
  const few = fewReplicas / 2;
  const [first] = replicas;
  const ofEngine = all.filter(({ state }) => state.engine === first?.state.engine);
  return {
    replicas,
    favourites: (name) => replicas.toSorted((a, b) => preferenceOf(name, b) - preferenceOf(name, a)).slice(0, few),
    others: () => replicas.slice(0, few),
    load: {
      requests: ofEngine.reduce((sum, { inFlight }) => sum + inFlight, 0),
      replicas: ofEngine.filter(({ state }) => state.ready).length,
    },
  };
}
