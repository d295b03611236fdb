/**
 * `make soak`: a whole line under load while its parts are killed, stopped, paused, cut off and given wrong clocks at random. Afterwards a
 * separate program checks the history. NATS and all services are real, each a process of its own; engines and trainer are simulated, so that
 * what each version must answer can be computed from its bytes.
 *
 *   SOAK_MINUTES   how long faults happen; default 10
 *   SOAK_SEED      decides which faults, and when; default: another each time, printed
 *   SOAK_DIR       where history and logs are left; default .cache/soak/<seed>
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createWriteStream } from "node:fs";
import { mkdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type ProxyFixture, startProxy } from "@loraline/testkit/servers";
import { root } from "../line-under-test.ts";
import { startSimulatedLine } from "../services-under-test.ts";
import type { Tell } from "./client.ts";
import { createFaults } from "./faults.ts";
import { numbersFrom } from "./numbers.ts";
import { observe } from "./under-load.ts";

const minutes = Number(process.env["SOAK_MINUTES"] ?? 10);
const seed = Number(process.env["SOAK_SEED"] ?? Date.now() % 1_000_000);
const dir = process.env["SOAK_DIR"] ?? join(root, ".cache/soak", String(seed));
for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => process.exit(1));

console.log(`SOAK_SEED=${seed} SOAK_MINUTES=${minutes} in ${dir}`);
await rm(dir, { recursive: true, force: true });
await mkdir(dir, { recursive: true });
const file = createWriteStream(join(dir, "history.jsonl"));
const tell: Tell = (entry) => void file.write(`${JSON.stringify(entry)}\n`);

await using owned = new AsyncDisposableStack();
const proxies = new Map<string, ProxyFixture>();
const line = owned.use(
  await startSimulatedLine({
    dir,
    gateways: 2,
    agents: 2,
    script: { simulated: true, steps: 30, save_steps: 5, step_ms: 100 },
    async natsUrl(id, direct) {
      const proxy = owned.use(await startProxy(direct));
      proxies.set(id, proxy);
      return proxy.url;
    },
  }),
);
const began = performance.now();
const secondsSince = (): number => Math.round((performance.now() - began) / 1000);
const { underLoad } = observe({ services: line.services, nc: line.nc, seed, tell });
const { stored } = await underLoad(async ({ served, uploads, open }) => {
  const go = (): boolean => secondsSince() < minutes * 60;
  const report = async (): Promise<void> => {
    while (go()) {
      await sleep(30_000);
      console.log(`${secondsSince()} s: ${served.size} adapters answer, ${uploads.length} datasets, ${open.size} runs under way`);
    }
  };
  const faults = createFaults({ line, proxies, dir, random: numbersFrom(seed + 1), tell });
  await Promise.all([report(), faults.until(go), faults.until(go)]);
  console.log("no more faults; the line settles");
});
await writeFile(join(dir, "stored.json"), JSON.stringify(stored));
await new Promise<void>((resolve) => file.end(() => resolve()));

/* the checker, a program of its own */

const checker = spawn(process.execPath, ["--conditions=@loraline/source", join(import.meta.dirname, "check-main.ts"), dir], {
  stdio: "inherit",
});
const [code] = (await once(checker, "exit")) as [number | null];
console.log(`SOAK_SEED=${seed}; history and logs are in ${dir}`);
process.exitCode = code ?? 1;
