/** Checks what a soak left in a folder: `node --conditions=@loraline/source tests/soak/check-main.ts DIR`. Exits with 1 on any finding. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { checkHistory } from "./check-history.ts";
import type { Entry, Stored } from "./history.ts";

const [dir = "."] = process.argv.slice(2);
const history = readFileSync(join(dir, "history.jsonl"), "utf8")
  .split("\n")
  .filter((line) => line !== "")
  .map((line) => JSON.parse(line) as Entry);
const stored = JSON.parse(readFileSync(join(dir, "stored.json"), "utf8")) as Stored;
const findings = checkHistory(history, stored);

const counts = Object.entries(Object.groupBy(history, (entry) => ("outcome" in entry ? `${entry.kind} ${entry.outcome}` : entry.kind)));
for (const [what, entries = []] of counts.toSorted(([a], [b]) => a.localeCompare(b)))
  console.log(`${String(entries.length).padStart(8)}  ${what}`);
for (const [stream, events] of Object.entries(stored.streams)) console.log(`${String(events.length).padStart(8)}  events in ${stream}`);
for (const { what, message } of findings.slice(0, 100)) console.log(`FINDING ${what}: ${message}`);
if (findings.length > 100) console.log(`… and ${findings.length - 100} more`);
console.log(`${findings.length} findings`);
process.exitCode = findings.length === 0 ? 0 : 1;
