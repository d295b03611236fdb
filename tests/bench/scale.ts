/**
 * The `scale` table: what a line a hundred times the usual size takes, beside what it took before (commit 1cd6537), and what was asked for.
 * Engines are simulated or null, everything else is real. Each part is a file in `scale/`, and can be run alone:
 *
 *   node --conditions=@loraline/source tests/bench/main.ts scale           # all parts
 *   node --conditions=@loraline/source tests/bench/main.ts scale:route     # one
 *
 * To add rows, write a file in `scale/` and enter it here. Rows state CPU time beside wall time where they can, since a busy machine changes only the latter.
 */
import type { Row } from "./table.ts";
import { scaleAgent } from "./scale/agent.ts";
import { scaleGateway } from "./scale/gateway.ts";
import { scalePlacement } from "./scale/placement.ts";
import { scaleTraffic } from "./scale/traffic.ts";
import { scaleRoute } from "./scale/route.ts";
import { scaleDatasets } from "./scale/datasets.ts";
import { scaleLists } from "./scale/lists.ts";
import { scaleNeighbour } from "./scale/neighbour.ts";
import { scaleTrain } from "./scale/train-round.ts";

/** A row of the scale table. */
export interface ScaleRow {
  what: string;
  value: string;
  /** The figure of the same command at commit 1cd6537; how it is known where it could not be run. */
  before: string;
  /** What was asked for. */
  limit: string;
  detail: string;
}

const parts: Record<string, () => Promise<ScaleRow[]>> = {
  route: scaleRoute,
  gateway: scaleGateway,
  traffic: scaleTraffic,
  agent: scaleAgent,
  placement: scalePlacement,
  train: scaleTrain,
  datasets: scaleDatasets,
  lists: scaleLists,
  neighbour: scaleNeighbour,
};

/** Each part as a benchmark of its own, `scale:<part>`. */
export const scaleBenches: Record<string, () => Promise<Row[]>> = Object.fromEntries(
  Object.entries(parts).map(([name, part]) => [`scale:${name}`, async () => (await part()).map((row) => shown(row, name))]),
);

const shown = ({ what, value, before, limit, detail }: ScaleRow, part: string): Row => ({
  what: `Scale: ${what}`,
  value: `${value} (before: ${before}; asked for: ${limit})`,
  detail: `${detail}; \`scale:${part}\``,
});
