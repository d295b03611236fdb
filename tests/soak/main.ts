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
import { base, eventually, root } from "../line-under-test.ts";
import { startSimulatedLine, tenant } from "../services-under-test.ts";
import { createClient, processOf, type Tell } from "./client.ts";
import { createFaults } from "./faults.ts";
import { numbersFrom } from "./numbers.ts";
import { readStored, readUsage } from "./read-stored.ts";

const minutes = Number(process.env["SOAK_MINUTES"] ?? 10);
const seed = Number(process.env["SOAK_SEED"] ?? Date.now() % 1_000_000);
const dir = process.env["SOAK_DIR"] ?? join(root, ".cache/soak", String(seed));
/** Time for the line to do by itself what was left, after everything is healed. A limit for hangs and no measure. */
const afterMs = 5 * 60_000;
for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => process.exit(1));

console.log(`SOAK_SEED=${seed} SOAK_MINUTES=${minutes} in ${dir}`);
await rm(dir, { recursive: true, force: true });
await mkdir(dir, { recursive: true });
const file = createWriteStream(join(dir, "history.jsonl"));
const tell: Tell = (entry) => void file.write(`${JSON.stringify(entry)}\n`);
tell({ kind: "start", at: Date.now(), seed, tenant, base });

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
const random = numbersFrom(seed);
const oneOf = <T>(all: readonly T[]): T => all[Math.floor(random() * all.length)] as T;
const began = performance.now();
let healed = false;
const faultsGo = (): boolean => performance.now() - began < minutes * 60_000;
const loadGoes = (): boolean => !healed;
const client = createClient({ tell, gateway: () => oneOf(line.gateways), go: loadGoes });

/* load */

const adapters = ["anna", "boris", "carla"];
const served = new Set<string>();
const uploads: string[] = [];
const open = new Map<string, string>();

const chats = async (user: number): Promise<void> => {
  for (let n = 0; loadGoes(); n++) {
    if (served.size > 0) await client.chat(oneOf([...served]), `Question ${n} of user ${user}?`, { stream: random() < 0.3 });
    await sleep(served.size > 0 ? 50 : 500);
  }
};
const rows = (n: number): string =>
  Array.from(
    { length: 20 },
    (_, i) => `${JSON.stringify({ instruction: `Say ${n} and ${i}.`, output: `It is ${n * i}, of course.` })}\n`,
  ).join("");
const trainings = async (): Promise<void> => {
  for (let n = 0; faultsGo(); n++) {
    if (open.size < 3) {
      const uploaded = uploads.length < 2 || random() < 0.5 ? await client.upload(`rows-${n}.jsonl`, rows(n)) : oneOf(uploads);
      if (uploaded !== undefined && !uploads.includes(uploaded)) uploads.push(uploaded);
      const adapter = oneOf(adapters);
      const settings = {
        lora: { r: 4, lora_alpha: 8, target_modules: ["q_proj", "v_proj"] },
        training: { seed: n },
        gate: "none",
        promote: random() < 0.5 ? "auto" : "manual",
        max_attempts: 20,
      };
      const run = uploaded && (await client.run(`run-${seed}-${n}`, adapter, uploaded, settings));
      if (run) open.set(run, adapter);
    }
    await sleep(500 + random() * 4000);
  }
};
/** Forgets runs that are over, and lets the clients ask what they have made. */
const follow = async (): Promise<void> => {
  while (loadGoes()) {
    for (const [run, adapter] of open) {
      const phase = await client.phase(run);
      if (phase === "served" || phase === "failed" || phase === "rejected" || phase === "cancelled") open.delete(run);
      // Nothing is promoted where all runs so far said `manual`.
      if (phase === "served" && (await client.look(adapter))?.alias) served.add(adapter);
    }
    await sleep(500);
  }
};
const moves = async (): Promise<void> => {
  while (faultsGo()) {
    await sleep(1000 + random() * 5000);
    if (served.size === 0) continue;
    const adapter = oneOf([...served]);
    const view = await client.look(adapter);
    const versions = view?.versions.filter(({ status }) => status === "desired" || status === "retired") ?? [];
    const to = versions.length === 0 ? undefined : oneOf(versions);
    if (to === undefined) continue;
    const canary = { steps: [50], interval_s: 5, min_requests: 1, max_error_rate: 1, max_latency_ratio: 1000 };
    const asked = random();
    if (asked < 0.2) await client.move("rollback", adapter, {});
    else await client.move("promote", adapter, { version: to.version, ...(asked < 0.4 ? { canary } : {}) });
  }
};
/** Counts never fall, whoever is killed. */
const watchUsage = async (): Promise<void> => {
  while (loadGoes()) {
    await sleep(5000);
    const at = Date.now();
    for (const [key, counts] of await readUsage(line.nc).catch(() => [])) tell({ kind: "usage", at, key, rows: counts });
  }
};
const report = async (): Promise<void> => {
  while (faultsGo()) {
    await sleep(30_000);
    console.log(
      `${Math.round((performance.now() - began) / 1000)} s: ${served.size} adapters answer, ${uploads.length} datasets, ${open.size} runs under way`,
    );
  }
};

const faults = createFaults({ line, proxies, dir, random: numbersFrom(seed + 1), tell });
const load = [chats(1), chats(2), chats(3), follow(), watchUsage()];
await Promise.all([trainings(), moves(), report(), faults.until(faultsGo), faults.until(faultsGo)]);

/* everything is healed: what is left has to happen by itself */

const settlesUntil = performance.now() + afterMs;
const settle = async (what: string, holds: () => Promise<boolean>): Promise<void> => {
  await eventually(what, Math.max(1000, settlesUntil - performance.now()), async () => ((await holds()) ? true : undefined)).catch(
    (error: unknown) => {
      const { cause } = error as Error;
      tell({ kind: "stuck", at: Date.now(), what: `not so by itself: ${what}${cause instanceof Error ? ` (${cause.message})` : ""}` });
    },
  );
};
console.log("no more faults; the line settles");
for (const service of line.services.all) await settle(`${service.id} is ready`, async () => (await service.readyz()).trim() === "ok");
await settle("all runs are over", async () => open.size === 0);
for (const adapter of served) {
  await settle(`no move of ${adapter} is under way`, async () => {
    const before = await client.look(adapter);
    await sleep(7000);
    return before !== undefined && before.moves.length === (await client.look(adapter))?.moves.length;
  });
}
healed = true;
await Promise.all(load);
tell({ kind: "healed", at: Date.now() });
for (const adapter of served) {
  for (const gateway of line.gateways) {
    await settle(
      `${adapter} answers by ${gateway.id}`,
      async () => (await client.chat(adapter, "At last?", { stream: false, via: gateway })).outcome === "answered",
    );
  }
}
for (const upload of uploads) await client.content(upload);
for (const gateway of line.gateways) {
  tell({ kind: "ended", at: Date.now(), process: processOf(gateway), how: (await gateway.kill("SIGTERM")) === 0 ? "stopped" : "crashed" });
}
await writeFile(join(dir, "stored.json"), JSON.stringify(await readStored(line.nc, tenant)));
await new Promise<void>((resolve) => file.end(() => resolve()));

/* the checker, a program of its own */

const checker = spawn(process.execPath, ["--conditions=@loraline/source", join(import.meta.dirname, "check-main.ts"), dir], {
  stdio: "inherit",
});
const [code] = (await once(checker, "exit")) as [number | null];
console.log(`SOAK_SEED=${seed}; history and logs are in ${dir}`);
process.exitCode = code ?? 1;
