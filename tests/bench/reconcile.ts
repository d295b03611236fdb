/**
 * Measures the controller's part of 1,000 adapters on 100 replicas: the cost of reconciling when replicas are only simulated
 * (`converge-replicas-main.ts`: no engine, no files, no proofs). `converge.ts` measures the cost of agents and proofs.
 * BENCH_REPLICAS and BENCH_ADAPTERS make it smaller.
 */
import { buckets } from "@loraline/contracts";
import { eventually } from "../line-under-test.ts";
import type { ControllerUsage } from "./converge-controller-main.ts";
import { base, cpuMsOf, engine, manyAdapters, replicas, startFleet } from "./converge-fleet.ts";
import type { ReplicasSettings } from "./converge-replicas-main.ts";
import type { Row } from "./table.ts";

export async function benchReconcile(): Promise<Row[]> {
  await using owned = new AsyncDisposableStack();
  const { nats, bus, controller, start, ask, train } = await startFleet(owned, manyAdapters);
  console.error(`bench: ${manyAdapters} adapters on ${replicas} simulated replicas …`);
  const trainFrom = performance.now();
  await train(0, manyAdapters);
  const gateMs = performance.now() - trainFrom;

  const served = new Set<string>();
  const adapters = await bus.bucket(buckets.adapters);
  const stopping = new AbortController();
  owned.defer(() => stopping.abort());
  await adapters.watch({
    signal: stopping.signal,
    onChange(key, state) {
      if (state?.versions.every(({ servedAt }) => servedAt !== null)) served.add(key);
    },
  });
  const usage = () => ask<ControllerUsage>(controller, {});
  const before = await usage();
  const natsBefore = cpuMsOf(nats.pid);
  let most = before.rss;
  const sampling = setInterval(() => void usage().then(({ rss }) => (most = Math.max(most, rss))), 1000);
  owned.defer(() => clearInterval(sampling));
  const from = performance.now();
  const settings: ReplicasSettings = { servers: nats.url, engine, base, count: replicas };
  const { child } = await start("converge-replicas-main.ts", settings);
  await eventually("every adapter is served", 600_000, () => (served.size >= manyAdapters ? true : undefined));
  const ms = performance.now() - from;
  clearInterval(sampling);
  const after = await usage();
  const { cpuMs: toldMs } = await ask<{ cpuMs: number }>(child, {});
  const natsMs = cpuMsOf(nats.pid) - natsBefore;
  await new Promise((resolve) => setTimeout(resolve, 10_000));
  const quiet = await usage();

  const holdings = manyAdapters * replicas;
  const s = (milliseconds: number): string => (milliseconds / 1000).toFixed(1);
  const mb = (bytes: number): string => (bytes / 1e6).toFixed(0);
  return [
    {
      what: `Reconcile: ${manyAdapters} adapters × ${replicas} simulated replicas → every version served on all`,
      value: `${s(ms)} s`,
      detail: `${holdings} holdings told over NATS; no engines, files or proofs behind them. CPU: controller ${s(after.cpuMs - before.cpuMs)} s, nats-server ${s(natsMs)} s, the replicas' process ${s(toldMs)} s`,
    },
    {
      what: "Reconcile: the controller's memory",
      value: `${mb(most)} MB at most`,
      detail: `${mb(before.rss)} MB with ${manyAdapters} adapters desired and no replica, ${mb(after.rss)} MB when all are served, ${mb(quiet.rss)} MB 10 s later, in which it takes ${s(quiet.cpuMs - after.cpuMs)} s of CPU; the gate took ${s(gateMs)} s for ${manyAdapters}`,
    },
  ];
}
