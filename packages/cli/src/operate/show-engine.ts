/** Engines and what would make them serve better, in words for a person. */
import type { EngineView } from "@loraline/contracts";
import { duration, type Line, table, yellow } from "../terminal.ts";

export function listEngines(engines: readonly EngineView[]): Line[] {
  const rows = engines.map(({ engine, base, replicas, versions, asked, maxLoras, maxCpuLoras, maxLoraRank }) => [
    engine,
    base,
    `${replicas.filter(({ ready }) => ready).length}/${replicas.length}`,
    String(versions),
    `${asked.adapters} in ${duration(asked.windowMs)}`,
    `${maxLoras}/${maxCpuLoras}`,
    String(maxLoraRank),
  ]);
  const advice = engines.flatMap(({ engine, advice: given }) =>
    given.map(({ level, message }) => (level === "warn" ? yellow(`${engine}: ${message}`) : `${engine}: ${message}`)),
  );
  return [
    ...table([["ENGINE", "BASE", "READY", "VERSIONS", "ASKED", "MAX LORAS/CPU", "MAX RANK"], ...rows]),
    ...replicaLines(engines),
    ...engines.flatMap(({ replicas }) =>
      replicas.flatMap(({ replica, problem }) => (problem ? [yellow(`${replica}: ${problem.code}: ${problem.message}`)] : [])),
    ),
    ...advice,
  ];
}

/** One row for each replica, where an engine has several, or where its only one holds less than it should. */
function replicaLines(engines: readonly EngineView[]): Line[] {
  const rows = engines.flatMap(({ engine, replicas }) =>
    replicas.flatMap(({ replica, ready, counts }) => {
      const { wanted = 0, proven = 0, retrying = 0, quarantined = 0, refused = 0, draining = 0 } = counts ?? {};
      if (replicas.length === 1 && ready && proven === wanted && draining === 0) return [];
      const others = Object.entries({ retrying, quarantined, refused, draining }).filter(([, count]) => count > 0);
      return [
        [
          engine,
          replica,
          ready ? "ready" : "not ready",
          `${proven}/${wanted} proven`,
          others.map(([is, count]) => `${count} ${is}`).join(", "),
        ],
      ];
    }),
  );
  return rows.length === 0 ? [] : ["", ...table([["ENGINE", "REPLICA", "", "HOLDS", ""], ...rows])];
}
