/**
 * Versions that may come: their runs still evaluate them. Replicas load and prove them ahead, as long as there is room; they stand in no
 * adapter's state, so that nobody can ask them. Kept in memory only: after a restart of the controller they come as all others do.
 */
import { adapterKey, type AdapterState, type Assignment } from "@loraline/contracts";

export type IncomingVersion = Pick<Assignment["versions"][number], "digest" | "manifest" | "evidence" | "trace"> & {
  tenant: string;
  adapter: string;
  engine: string;
  runId: string;
};

export interface IncomingVersions {
  /** Of one adapter, by its key in KV `adapters`. */
  of(adapterKey: string): readonly IncomingVersion[];
  /** How many there are on an engine. */
  countOn(engine: string): number;
  /** Takes the place of what the same run told before. */
  add(version: IncomingVersion): void;
  /** What this run told will not come. */
  drop(runId: string): void;
  /** The engine has no room for them any more. */
  dropOn(engine: string): void;
  /** To be called with every change of an adapter: what has become one of its versions is not incoming any more. */
  onAdapter(state: AdapterState): void;
}

/** @param onChange - called with the key of each adapter whose incoming versions changed. */
export function createIncomingVersions(onChange: (adapterKey: string) => void): IncomingVersions {
  const byRun = new Map<string, IncomingVersion>();
  const dropWhere = (isOut: (version: IncomingVersion) => boolean): void => {
    for (const [runId, version] of byRun) {
      if (!isOut(version)) continue;
      byRun.delete(runId);
      onChange(adapterKey(version));
    }
  };
  return {
    of: (key) => [...byRun.values()].filter((version) => adapterKey(version) === key),
    countOn: (engine) => [...byRun.values()].filter((version) => version.engine === engine).length,
    add(version) {
      byRun.set(version.runId, version);
      onChange(adapterKey(version));
    },
    drop(runId) {
      dropWhere((version) => version.runId === runId);
    },
    dropOn(engine) {
      dropWhere((version) => version.engine === engine);
    },
    onAdapter({ versions }) {
      if (byRun.size === 0) return;
      for (const { runId, checkpoint } of versions) if (!checkpoint && byRun.has(runId)) dropWhere((version) => version.runId === runId);
    },
  };
}
