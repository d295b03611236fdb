/** Runs `ingest-main.ts` (detection and canonical records) in a process of its own, so that memory of other benches does not count. */
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import type { Row } from "./table.ts";

export async function benchIngest(): Promise<Row[]> {
  const main = join(import.meta.dirname, "ingest-main.ts");
  const { status, stdout, stderr } = spawnSync(process.execPath, ["--conditions=@loraline/source", main], { encoding: "utf8" });
  if (status !== 0) throw new Error(`ingest-main.ts: ${stderr}`);
  return JSON.parse(stdout) as Row[];
}
