/** Pure: which entries of KV `assignments` follow from an adapter's state. */
import { type AdapterState, type Assignment, assignmentKey } from "@loraline/contracts";
import { loraNameOf } from "../../lora-names.ts";
import { rankOf } from "../../version-rank.ts";
import type { IncomingVersion } from "./incoming-versions.ts";

/**
 * Entries by key. A version that is placed stands in an entry of each of its replicas, any other desired one in that of every replica. So do
 * incoming versions, under the number that each would have if it came next: if another one takes that, it is loaded anew.
 */
export function assignmentsOf(state: AdapterState | undefined, incoming: readonly IncomingVersion[] = []): Map<string, Assignment> {
  const found = new Map<string, Assignment>();
  const versions = state?.versions ?? [];
  const next = Math.max(0, ...versions.map(({ version }) => version)) + 1;
  for (const { runId, tenant, adapter, engine, ...facts } of incoming) {
    if (versions.some((version) => version.runId === runId && !version.checkpoint)) continue;
    const key = assignmentKey({ engine, replica: null, tenant, adapter });
    const entry = found.get(key) ?? { versions: [] };
    const engineName = loraNameOf({ tenant, adapter, version: next, digest: facts.digest });
    if (entry.versions.some((known) => known.engineName === engineName)) continue;
    // Somebody waits for it, as for every run's version.
    entry.versions.push({ version: next, ...facts, engineName, priority: 1 });
    found.set(key, entry);
  }
  if (state === undefined) return found;
  const { tenant, adapter, engine } = state;
  for (const version of state.versions) {
    if (version.status !== "desired") continue;
    const { digest, manifest, evidence, engineName, trace } = version;
    const assigned = { version: version.version, digest, manifest, evidence, engineName, trace, priority: rankOf(state, version) };
    for (const replica of version.replicas ?? [null]) {
      const key = assignmentKey({ engine, replica, tenant, adapter });
      const entry = found.get(key) ?? { versions: [] };
      entry.versions.push(assigned);
      found.set(key, entry);
    }
  }
  return found;
}
