/**
 * Convergence at scale: real controller and agents on a real NATS, engines simulated (`packages/testkit/src/simulated-engine.ts`
 * answers loads and probes over HTTP, and computes hashes instead of a model). Every proof is asked and judged as always.
 * One machine runs a hundred agents, so the times are those of a hundred agents on its cores. CPU time, messages and bytes are measured for each part.
 * BENCH_REPLICAS, BENCH_ADAPTERS and BENCH_FEW_ADAPTERS make it smaller; BENCH_REAL=0 leaves out the real engine at the end.
 */
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { createReplicaTable } from "@loraline/bus";
import { events } from "@loraline/contracts";
import { base as realBase, clientOf, eventually, root, runOver, scratchDir, startLineUnderTest } from "../line-under-test.ts";
import type { AgentsCommand, AgentsSettings, AgentsUsage } from "./converge-agents-main.ts";
import type { ControllerUsage } from "./converge-controller-main.ts";
import type { EnginesCommand, EnginesSettings } from "./converge-engines-main.ts";
import {
  base,
  type Child,
  cpuMsOf,
  engine,
  manyAdapters as fleetAdapters,
  replicas as fleetReplicas,
  startFleet,
  tenant,
} from "./converge-fleet.ts";
import { cpuMs, percentile, type Row } from "./table.ts";

const fewAdapters = Number(process.env["BENCH_FEW_ADAPTERS"] ?? 100);
const processes = 2;
const changes = 15;
const restarts = 10;

export async function benchConverge(): Promise<Row[]> {
  return [...(await simulatedFleet()), ...(process.env["BENCH_REAL"] === "0" ? [] : await realEngine())];
}

/** Measures how a whole fleet converges from nothing, and the cost for each part. */
export const benchFleet = (): Promise<Row[]> => simulatedFleet({ part: "bulk" });

/** Measures a trained version on a small installation: three replicas, real agents, simulated engines. */
export const benchThreeReplicas = (): Promise<Row[]> => simulatedFleet({ part: "change", replicas: 3, manyAdapters: 20 });

async function simulatedFleet({
  part = "all",
  replicas = fleetReplicas,
  manyAdapters = fleetAdapters,
}: { part?: "all" | "bulk" | "change"; replicas?: number; manyAdapters?: number } = {}): Promise<Row[]> {
  await using owned = new AsyncDisposableStack();
  const { nats, bus, dir, start, ask, controller, trained, train } = await startFleet(owned, manyAdapters);
  const enginesSettings: EnginesSettings = { base, count: replicas };
  const { child: engines, said } = await start<{ urls: string[] }>("converge-engines-main.ts", enginesSettings);

  /* the state as a gateway sees it */
  const stopping = new AbortController();
  owned.defer(() => stopping.abort());
  const table = await createReplicaTable({ bus, signal: stopping.signal });
  const provenEverywhere = (): number => [...table.entries()].reduce((sum, { proven }) => sum + proven.size, 0);

  /* agents */
  let agents: Child[] = [];
  const startAgents = async (): Promise<void> => {
    const count = Math.ceil(replicas / processes);
    const begun = Array.from({ length: processes }, async (_, p) => {
      const from = p * count;
      const urls = said.urls.slice(from, from + count);
      const settings: AgentsSettings = { servers: nats.url, engine, base, dir: join(dir, `agents-${p}`), from, urls };
      return (await start("converge-agents-main.ts", settings)).child;
    });
    agents = await Promise.all(begun);
  };
  const stopAgents = async (): Promise<void> => {
    for (const child of agents) {
      const gone = once(child, "exit");
      child.send({ kind: "stop" } satisfies AgentsCommand);
      await gone;
    }
    agents = [];
  };
  const usage = async () => {
    const each = await Promise.all(agents.map((child) => ask<AgentsUsage>(child, { kind: "usage" })));
    const sum = (pick: (of: AgentsUsage) => number): number => each.reduce((total, of) => total + pick(of), 0);
    return {
      agents: {
        rss: sum(({ rss }) => rss),
        cpuMs: sum((of) => of.cpuMs),
        messages: sum((of) => of.messages),
        bytes: sum((of) => of.bytes),
      },
      controller: await ask<ControllerUsage>(controller, {}),
      engines: await ask<{ cpuMs: number; rss: number }>(engines, { kind: "usage" }),
      natsCpuMs: cpuMsOf(nats.pid),
      benchCpuMs: cpuMs(),
    };
  };
  type Usage = Awaited<ReturnType<typeof usage>>;
  const messagesOf = ({ agents: a, controller: c }: Usage): number => a.messages + c.messages;
  const converged = async (adapters: number): Promise<number> => {
    const from = performance.now();
    await eventually(`${adapters} adapters on ${replicas} replicas`, 1_200_000, () =>
      provenEverywhere() >= adapters * replicas ? true : undefined,
    );
    return performance.now() - from;
  };

  /** Trains one adapter after the other, and waits until each is proven everywhere. */
  const oneByOne = async (from: number) => {
    // The cost of heartbeats is not part of a change's cost.
    const quietBefore = await usage();
    const quietFrom = performance.now();
    await new Promise((resolve) => setTimeout(resolve, 6000));
    const before = await usage();
    const perMs = (pick: (of: Usage) => number): number => (pick(before) - pick(quietBefore)) / (performance.now() - quietFrom);
    const start = performance.now();
    const latencies: number[] = [];
    for (let n = 0; n < changes; n++) {
      const runId = await trained(`a${from + n}`, from + n + 1);
      const served = await eventually("the run is served", 60_000, () => bus.last(events.runServed, { tenant, id: runId }));
      if (served.data.replicas !== replicas) throw new Error(`served on ${served.data.replicas} of ${replicas}`);
      latencies.push(served.data.lastStepToProvenMs);
    }
    const after = await usage();
    const ms = performance.now() - start;
    const cost = (pick: (of: Usage) => number): number => (pick(after) - pick(before) - perMs(pick) * ms) / changes;
    return {
      latencies,
      messages: cost(messagesOf),
      bytes: cost(({ agents: a, controller: c }) => a.bytes + c.bytes),
      cpuMs: cost(({ agents: a }) => a.cpuMs),
      quietPerSecond: 1000 * perMs(messagesOf),
    };
  };

  const amongFew = async () => {
    console.error(`bench: ${fewAdapters} adapters on ${replicas} replicas …`);
    await train(0, fewAdapters);
    await startAgents();
    await converged(fewAdapters);
    const changed = await oneByOne(fewAdapters);
    await stopAgents();
    return changed;
  };
  const few = part === "all" ? await amongFew() : undefined;

  console.error(`bench: ${manyAdapters} adapters on ${replicas} replicas …`);
  await train(few === undefined ? 0 : fewAdapters + changes, manyAdapters);
  const wanted = manyAdapters;
  const before = await usage();
  const from = performance.now();
  await startAgents();
  const agentsUpMs = performance.now() - from;
  await converged(wanted);
  const bulkMs = performance.now() - from;
  const bulk = await usage();
  const heapBefore = heapUsed();
  const another = new AbortController();
  const same = await createReplicaTable({ bus, signal: another.signal });
  const tableMb = (heapUsed() - heapBefore) / 1e6;
  if ([...same.entries()].length !== replicas) throw new Error("the table is not complete");
  another.abort();
  const proofs = wanted * replicas;
  const spent = (pick: (of: Usage) => number): number => pick(bulk) - pick(before);
  const each = (pick: (of: Usage) => number): string => (spent(pick) / proofs).toFixed(2);
  const mb = (bytes: number): string => (bytes / 1e6).toFixed(0);
  const bulkRows: Row[] = [
    {
      what: `Converge: ${wanted} adapters × ${replicas} replicas (simulated engines), from nothing`,
      value: `${(bulkMs / 1000).toFixed(0)} s`,
      detail: `${Math.round(proofs / (bulkMs / 1000))} loads and proofs/s on this machine, which plays all ${replicas} (${processes} processes, up after ${(agentsUpMs / 1000).toFixed(0)} s)`,
    },
    {
      what: "Converge: CPU for that",
      value: `${each(({ agents: a }) => a.cpuMs)} ms per load and proof in the agents`,
      detail: `simulated engines ${each(({ engines: e }) => e.cpuMs)}, nats-server ${each(({ natsCpuMs }) => natsCpuMs)}, controller ${each(({ controller: c }) => c.cpuMs)}, a gateway's table ${each(({ benchCpuMs }) => benchCpuMs)}`,
    },
    {
      what: `Converge: the controller's part of that (${proofs} holdings observed, ${wanted} versions served)`,
      value: `${(spent(({ controller: c }) => c.cpuMs) / 1000).toFixed(1)} s of CPU`,
      detail: `its memory ${mb(before.controller.rss)} MB before, ${mb(bulk.controller.rss)} MB after`,
    },
    {
      what: "Converge: messages for that",
      value: `${(spent(messagesOf) / proofs).toFixed(1)} per load and proof`,
      detail: `in and out of agents and controller, heartbeats and acknowledgements included; ${(spent(({ agents: a, controller: c }) => a.bytes + c.bytes) / proofs / 1000).toFixed(1)} kB`,
    },
    {
      what: "Converge: memory",
      value: `${(bulk.agents.rss / replicas / 1e6).toFixed(1)} MB per agent`,
      detail: `${wanted} adapters each; a gateway's table of all ${proofs} holdings: ${tableMb.toFixed(0)} MB of heap`,
    },
  ];

  if (part === "bulk") {
    await stopAgents();
    return bulkRows;
  }
  const many = await oneByOne(manyAdapters);
  const seconds = (values: readonly number[], rank: number): string => (Number(percentile(values, rank)) / 1000).toFixed(2);
  if (few === undefined) {
    await stopAgents();
    return [
      {
        what: `Converge: trained → proven on all ${replicas} replicas (simulated engines)`,
        value: `p50 ${seconds(many.latencies, 50)} s, p95 ${seconds(many.latencies, 95)} s`,
        detail: `run.trained published → all replicas proven, gate, load and proofs in between; ${changes} versions, one after the other, ${wanted} adapters there before; agents and engines beside the cluster, which has no image of a simulated engine`,
      },
    ];
  }

  console.error("bench: restarts …");
  const again: number[] = [];
  for (let n = 0; n < restarts; n++) {
    const replica = Math.floor((n * replicas) / restarts);
    const all = table.get(`${engine}.r${replica}`)?.proven.size ?? 0;
    const before = table.get(`${engine}.r${replica}`)?.report.incarnation;
    const { at } = await ask<{ at: number }>(engines, { kind: "restart", engine: replica } satisfies EnginesCommand);
    await eventually("everything is proven again", 120_000, () => {
      const entry = table.get(`${engine}.r${replica}`);
      return entry !== undefined && entry.report.incarnation !== before && entry.proven.size >= all ? true : undefined;
    });
    again.push(Date.now() - at);
  }
  await stopAgents();

  const cost = (of: typeof many): string => `${Math.round(of.messages)} messages, ${Math.round(of.bytes / 1000)} kB`;
  return [
    ...bulkRows,
    {
      what: `Converge: one adapter more among ${fewAdapters}`,
      value: cost(few),
      detail: `for ${replicas} replicas, without heartbeats (${few.quietPerSecond.toFixed(0)} messages/s); ${few.cpuMs.toFixed(0)} ms of CPU in all agents`,
    },
    {
      what: `Converge: one adapter more among ${wanted}`,
      value: cost(many),
      detail: `for ${replicas} replicas, without heartbeats (${many.quietPerSecond.toFixed(0)} messages/s); ${many.cpuMs.toFixed(0)} ms of CPU in all agents`,
    },
    {
      what: `Converge: last training step → proven on all ${replicas} replicas (simulated engines)`,
      value: `p50 ${seconds(many.latencies, 50)} s, p95 ${seconds(many.latencies, 95)} s`,
      detail: `${wanted} adapters there before; among ${fewAdapters}: p50 ${seconds(few.latencies, 50)} s, p95 ${seconds(few.latencies, 95)} s`,
    },
    {
      what: `Converge: engine restart → ${wanted} adapters proven again (simulated engine)`,
      value: `p50 ${seconds(again, 50)} s, p95 ${seconds(again, 95)} s`,
      detail: `${restarts} restarts, one at a time, from the new process' first answer`,
    },
  ];
}

/** @returns the memory in bytes, after garbage collection. */
function heapUsed(): number {
  setFlagsFromString("--expose-gc");
  (runInNewContext("gc") as () => void)();
  return process.memoryUsage().heapUsed;
}

/** The local server with its real vLLM, which is killed three times. */
async function realEngine(): Promise<Row[]> {
  await using scratch = await scratchDir();
  const state = join(scratch.path, "state");
  await using line = await startLineUnderTest(state);
  await eventually("the engine answers", 300_000, () => line.news.find((news) => news.kind === "engine-ready"));
  const client = clientOf(line);
  const file = new File([await readFile(join(root, "samples/persona.jsonl"))], "converge.jsonl");
  const { id } = await client.openai.files.create({ file, purpose: "fine-tune" });
  const body = { model: realBase, training_file: id, suffix: "converge", loraline: { training: { max_steps: 10, learning_rate: 1e-3 } } };
  const job = await client.openai.fineTuning.jobs.create(body);
  const run = await runOver(client, job.id.replace("ftjob-", ""));
  if (run.served === null) throw new Error(`the run ended as ${run.phase}: ${run.error?.message}`);
  const fromDeath: number[] = [];
  const fromAnswer: number[] = [];
  for (let n = 0; n < 3; n++) {
    const before = (await client.getAdapter({ adapter: "converge" })).replicas[0]?.incarnation;
    const { pid } = JSON.parse(await readFile(join(state, "children/engine.json"), "utf8")) as { pid: number };
    const killedAt = performance.now();
    process.kill(pid, "SIGKILL");
    const health = `${(JSON.parse(await readFile(join(state, "line.json"), "utf8")) as { engines: { url: string }[] }).engines[0]?.url}/health`;
    await eventually("the engine is gone", 30_000, () =>
      fetch(health).then(
        () => undefined,
        () => true,
      ),
    );
    let answeredAt = 0;
    await eventually("it is proven again", 300_000, async () => {
      if (
        answeredAt === 0 &&
        (await fetch(health).then(
          ({ ok }) => ok,
          () => false,
        ))
      )
        answeredAt = performance.now();
      const [replica] = (await client.getAdapter({ adapter: "converge" })).replicas;
      const proven = replica?.ready === true && replica.incarnation !== before && replica.adapters.some(({ state: is }) => is === "proven");
      return proven ? true : undefined;
    });
    fromDeath.push((performance.now() - killedAt) / 1000);
    fromAnswer.push((performance.now() - answeredAt) / 1000);
  }
  const all = (values: readonly number[]): string => values.map((value) => value.toFixed(1)).join(", ");
  return [
    {
      what: "Converge: vLLM killed → adapter proven again (real engine)",
      value: `p50 ${percentile(fromDeath, 50)} s, p95 ${percentile(fromDeath, 95)} s`,
      detail: `${all(fromDeath)}; of which after the new process answers its health check: ${all(fromAnswer)}`,
    },
  ];
}
