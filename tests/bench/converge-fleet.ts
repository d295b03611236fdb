/** Shared by the benchmarks of convergence: NATS, the controller in a process of its own, and adapters without a training. */
import { fork } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Bus, connectBus, createBus, ensureStreams } from "@loraline/bus";
import { adapterManifest, buckets, events, type EngineRecord, type RunSpecInput } from "@loraline/contracts";
import { createJetStreamObjects, putJson } from "@loraline/objects";
import { createLog, createTelemetry } from "@loraline/runtime";
import { simulatedAdapter, simulatedProbes, spawnNatsServer } from "@loraline/testkit/servers";
import { ulid } from "ulid";
import { eventually } from "../line-under-test.ts";
import type { ControllerSettings } from "./converge-controller-main.ts";

export const replicas = Number(process.env["BENCH_REPLICAS"] ?? 100);
export const manyAdapters = Number(process.env["BENCH_ADAPTERS"] ?? 1000);
export const tenant = "bench";
export const base = "simulated";
export const engine = "bench";

export type Child = ReturnType<typeof fork>;

interface Fleet {
  nats: { url: string; pid: number | undefined };
  bus: Bus;
  /** Folder for files of the benchmark. */
  dir: string;
  controller: Child;
  /** Starts another process; resolves with its first message. */
  start<T>(main: string, settings: unknown): Promise<{ child: Child; said: T }>;
  ask<T>(child: Child, command: object): Promise<T>;
  /** Adds an adapter as if a trainer had finished it. @returns its run. */
  trained(adapter: string, seed: number): Promise<string>;
  /** Adds adapters `a<from>` to `a<to - 1>`; resolves when all are desired. */
  train(from: number, to: number): Promise<void>;
}

export async function startFleet(owned: AsyncDisposableStack, adapters: number): Promise<Fleet> {
  const nats = owned.use(await spawnNatsServer());
  const dir = await mkdtemp(join(tmpdir(), "loraline-bench-"));
  owned.defer(() => rm(dir, { recursive: true, force: true }));
  const nc = await connectBus({ servers: nats.url, name: "bench" });
  owned.defer(() => nc.close());
  await ensureStreams(nc);
  const log = createLog({ service: "bench", level: process.env["LOG_LEVEL"] ?? "silent" });
  const telemetry = createTelemetry({ service: "bench" });
  const bus = createBus({ nc, log, telemetry, source: "bench" });
  const objects = await createJetStreamObjects(nc);

  const forked: Child[] = [];
  const start = async <T>(main: string, settings: unknown): Promise<{ child: Child; said: T }> => {
    const child = fork(join(import.meta.dirname, main), [JSON.stringify(settings)], { execArgv: ["--conditions=@loraline/source"] });
    forked.push(child);
    const [said] = (await once(child, "message")) as [T];
    return { child, said };
  };
  owned.defer(() => {
    for (const child of forked) if (child.connected) child.disconnect();
  });
  const ask = async <T>(child: Child, command: object): Promise<T> => {
    const answer = once(child, "message") as Promise<[T]>;
    child.send(command);
    return (await answer)[0];
  };

  /* the controller, in a process of its own so that its work can be measured alone */
  const record: EngineRecord = {
    engine,
    base: { name: base, revision: "1", digest: `sha256:${"b".repeat(64)}` },
    maxLoraRank: 32,
    maxLoras: 8,
    maxCpuLoras: 4 * adapters,
    maxModelLen: 2048,
    updatedAt: new Date().toISOString(),
  };
  const controllerSettings: ControllerSettings = { servers: nats.url, record };
  const { child: controller } = await start("converge-controller-main.ts", controllerSettings);

  /* trained adapters */
  const config = simulatedAdapter({ base }).config;
  const configRef = await objects.put(tenant, "adapter-file", config);
  const trained = async (adapter: string, seed: number) => {
    const runId = ulid();
    const at = { tenant, id: runId };
    const spec: RunSpecInput = { base, adapter, dataset: ulid(), gate: "none" };
    const { weights } = simulatedAdapter({ base, seed });
    const weightsRef = await objects.put(tenant, "adapter-file", weights);
    const manifest = await putJson(
      objects,
      tenant,
      "adapter",
      adapterManifest.parse({
        version: 1,
        base: record.base,
        rank: 4,
        targetModules: ["q_proj", "v_proj"],
        parameters: 1,
        files: [
          { path: "adapter_config.json", blob: configRef },
          { path: "adapter_model.safetensors", blob: weightsRef },
        ],
      }),
    );
    const evidence = await putJson(objects, tenant, "evidence", {
      version: 1,
      runId,
      adapter: manifest.digest,
      tokens: manifest,
      templateDigest: manifest.digest,
      evaluation: null,
      probes: await simulatedProbes(join(dir, `scratch-${seed}`), { base, seed }),
      lossHistory: [],
    });
    await bus.publish(events.runRequested, at, { spec });
    const lastStepAt = new Date().toISOString();
    await bus.publish(events.runTrained, at, {
      attempt: 1,
      adapter: manifest,
      evidence,
      rank: 4,
      targetModules: ["q_proj", "v_proj"],
      parameters: 1,
      steps: 1,
      trainLoss: 1,
      trainedTokens: 1,
      tokensPerSecond: 1,
      evaluation: null,
      lastStepAt,
    });
    return runId;
  };
  const train = async (from: number, to: number): Promise<void> => {
    let next = from;
    await Promise.all(
      Array.from({ length: 8 }, async () => {
        for (let n = next++; n < to; n = next++) await trained(`a${n}`, n + 1);
      }),
    );
    const bucket = await bus.bucket(buckets.adapters);
    await eventually(`${to} adapters are desired`, 600_000, async () => ((await bucket.entries()).length >= to ? true : undefined));
  };
  return { nats, bus, dir, controller, start, ask, trained, train };
}

/** @returns the CPU time of another process so far, in milliseconds; clock ticks are 10 ms. */
export function cpuMsOf(pid = 0): number {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]?.split(" ") ?? [];
  return 10 * (Number(fields[11]) + Number(fields[12]));
}
