/** `make bench`: prints a Markdown table and writes it to .cache/bench.md. Run it on an otherwise idle machine. */
import { mkdirSync, writeFileSync } from "node:fs";
import { cpus, loadavg, totalmem } from "node:os";
import { benchBus } from "./bus.ts";
import { benchCluster } from "./cluster.ts";
import { benchConsole } from "./console.ts";
import { benchConverge, benchFleet, benchThreeReplicas } from "./converge.ts";
import { benchGateway, benchGatewayOnVllm } from "./gateway.ts";
import { benchIngest } from "./ingest.ts";
import { benchIngestMemory } from "./ingest-memory.ts";
import { benchLine } from "./line.ts";
import { benchObjects } from "./objects.ts";
import { benchProof } from "./proof.ts";
import { benchReconcile } from "./reconcile.ts";
import { scaleBenches } from "./scale.ts";
import { type Row, tableOf } from "./table.ts";
import { benchTokenize } from "./tokenize.ts";

const only = process.argv.slice(2);
const benches: Record<string, () => Promise<Row[]>> = {
  bus: benchBus,
  objects: benchObjects,
  ingest: benchIngest,
  "ingest-memory": benchIngestMemory,
  tokenize: benchTokenize,
  gateway: benchGateway,
  reconcile: benchReconcile,
  converge: benchConverge,
  "gateway-vllm": benchGatewayOnVllm,
  line: benchLine,
  console: benchConsole,
  ...scaleBenches,
};
/** Benchmarks that run only when they are named. */
const others: Record<string, () => Promise<Row[]>> = {
  fleet: benchFleet,
  "three-replicas": benchThreeReplicas,
  cluster: benchCluster,
  proof: benchProof,
};
const load = loadavg()[0]!.toFixed(1);
const machine = `${cpus().length} × ${cpus()[0]?.model ?? "unknown CPU"}, ${Math.round(totalmem() / 2 ** 30)} GiB, Node ${process.version}, load before the start ${load}`;
const rows: Row[] = [];
for (const [name, bench] of Object.entries({ ...benches, ...others })) {
  if (only.length > 0 ? !only.includes(name) && !only.includes(name.split(":", 1)[0] ?? "") : name in others) continue;
  console.error(`bench: ${name} …`);
  rows.push(...(await bench()));
}
const report = `${machine}\n\n${tableOf(rows)}\n`;
mkdirSync(".cache", { recursive: true });
writeFileSync(".cache/bench.md", report);
console.log(report);
