/** Pure: which entries of KV `assignments` follow from an adapter's state. */
import { type AdapterState, type Assignment, assignmentKey } from "@loraline/contracts";
import { rankOf } from "../../version-rank.ts";

/** Entries by key. A version that is placed stands in an entry of each of its replicas, any other desired one in that of every replica. */
export function assignmentsOf(state: AdapterState): Map<string, Assignment> {
  const { tenant, adapter, engine } = state;
  const found = new Map<string, Assignment>();
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
