/** What is to be served and how far it is, and which replicas say that something is wrong with them. */
import type { ReplicaTable } from "@loraline/bus";
import type { AdapterState } from "@loraline/contracts";
import type { Metrics } from "@loraline/runtime";
import { replicaFreshMs } from "./versions/bucket-replicas.ts";

/** There may be a hundred thousand adapters, so they are not gone through more often. */
const everyMs = 10_000;

export function followServing(
  metrics: Metrics,
  { states, replicas }: { states: { values(): Iterable<AdapterState> }; replicas: Pick<ReplicaTable, "entries"> },
): Disposable {
  const versions = metrics.gauge({
    name: "loraline_versions",
    help: "Adapter versions. state: served (proven on its replicas at least once), converging (not yet), unplaced (on fewer replicas than asked for), refused, retired, deleted",
    labels: ["engine", "state"],
  });
  const oldest = metrics.gauge({
    name: "loraline_versions_oldest_converging_seconds",
    help: "How old the version is that has been converging longest; 0: none is",
    labels: ["engine"],
  });
  const canaries = metrics.gauge({ name: "loraline_canaries", help: "Canaries that are under way", labels: ["engine"] });
  const problems = metrics.gauge({
    name: "loraline_replica_problem",
    help: "1: this replica answers, and is not ready, because of code. replica: its pod",
    labels: ["engine", "replica", "code"],
  });
  let countedAt = Number.NEGATIVE_INFINITY;
  return metrics.beforeScrape(() => {
    problems.reset();
    for (const { report, heardAt } of replicas.entries()) {
      const { engine, replica, pod, problem } = report;
      if (problem && performance.now() - heardAt < replicaFreshMs) problems.set({ engine, replica: pod ?? replica, code: problem.code }, 1);
    }
    if (performance.now() - countedAt < everyMs) return;
    countedAt = performance.now();
    for (const gauge of [versions, oldest, canaries]) gauge.reset();
    const since = new Map<string, number>();
    for (const { engine, versions: all, canary } of states.values()) {
      since.set(engine, since.get(engine) ?? Infinity);
      canaries.inc({ engine }, canary ? 1 : 0);
      for (const { status, servedAt, unplaced, createdAt } of all) {
        const isConverging = status === "desired" && servedAt === null;
        versions.inc({ engine, state: status !== "desired" ? status : isConverging ? "converging" : "served" });
        if (status === "desired" && unplaced) versions.inc({ engine, state: "unplaced" });
        if (isConverging) since.set(engine, Math.min(since.get(engine) ?? Infinity, Date.parse(createdAt)));
      }
    }
    for (const [engine, at] of since) oldest.set({ engine }, at === Infinity ? 0 : Math.max(0, Date.now() - at) / 1000);
  });
}
