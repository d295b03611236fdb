/**
 * Scales engines to zero while nobody asks them, and back when a request waits for one or a version is to be proven there: engines of the values and
 * those of Engines, by their Deployments. What gateways tell is in KV `traffic`; how an engine is scaled, in its record.
 */
import type { V1Deployment } from "@kubernetes/client-node";
import type { Bus } from "@loraline/bus";
import { buckets, everyTraffic } from "@loraline/contracts";
import { type Kube, watch } from "@loraline/kube";
import type { Log, Telemetry } from "@loraline/runtime";
import type { LineView } from "../line-view.ts";
import { deployments } from "../resources.ts";
import { decideWake, isToProve } from "./decide-wake.ts";

interface WakeDeps {
  kube: Kube;
  bus: Pick<Bus, "bucket">;
  line: Pick<LineView, "allEngines">;
  log: Log;
  telemetry: Telemetry;
  namespace: string;
  signal: AbortSignal;
  now?: (() => number) | undefined;
}

const engineLabel = "loraline.dev/engine";
const lookEveryMs = 500;
/** Gateways tell that they live every 5 s. */
const silentAfterMs = buckets.traffic.ttlMs;
/** A gateway that has been silent for so long is gone, whatever it did. Before that it may be one that NATS does not reach, and that answers. */
const goneAfterMs = 10 * 60_000;
/** The owner of the number of replicas. */
const manager = "loraline-wake";

/** Works until the signal is aborted. */
export async function serveWake({
  kube,
  bus,
  line,
  log,
  telemetry,
  namespace,
  signal,
  now = () => performance.now(),
}: WakeDeps): Promise<void> {
  const [traffic, adapters] = await Promise.all([bus.bucket(buckets.traffic), bus.bucket(buckets.adapters)]);
  const scaled = telemetry.metrics.counter({
    name: "loraline_engine_scaled_total",
    help: "Engines that were scaled to zero, or back. to: sleep, wake",
    labels: ["engine", "to"],
  });
  /** Gateway to when it was heard. One that leaves in order says so. */
  const heard = new Map<string, number>();
  const demand = new Map<string, { at: number; of: Record<string, number> }>();
  const found = new Map<string, V1Deployment>();
  /** Since when nobody has asked an engine, as far as is known here. */
  const usedAt = new Map<string, number>();
  /** Adapter to the engine that is to prove a version of it. */
  const toProve = new Map<string, string>();
  const ready = Promise.withResolvers<void>();

  const watching = [
    watch<V1Deployment>(kube, deployments, {
      namespace,
      labelSelector: engineLabel,
      signal,
      log,
      onReady: ready.resolve,
      onChange(key, object) {
        if (object === undefined) found.delete(key);
        else found.set(key, object);
      },
    }),
  ];
  await traffic.watch({
    filter: everyTraffic.inFlight,
    signal,
    onChange(gateway, entry) {
      if (entry === undefined) heard.delete(gateway);
      else heard.set(gateway, now());
    },
  });
  await traffic.watch({
    filter: everyTraffic.demand,
    signal,
    onChange(key, entry) {
      const of = entry?.demand ?? {};
      demand.set(key, { at: now(), of });
      for (const engine of Object.keys(of)) usedAt.set(engine, now());
    },
  });
  await adapters.watch({
    filter: ">",
    signal,
    onChange(key, state) {
      if (state !== undefined && isToProve(state)) toProve.set(key, state.engine);
      else toProve.delete(key);
    },
  });

  /** Whether every gateway that may answer requests was heard lately, and there is one. */
  const hearsAll = (time: number): boolean => {
    for (const [gateway, at] of heard) if (time - at > goneAfterMs) heard.delete(gateway);
    return heard.size > 0 && heard.values().every((at) => time - at <= silentAfterMs);
  };

  const look = async (): Promise<void> => {
    const time = now();
    for (const [key, { at }] of demand) if (time - at > silentAfterMs) demand.delete(key);
    const isKnown = hearsAll(time);
    const awaited = new Set(toProve.values());
    for (const { engine, wake } of line.allEngines()) {
      const deployment = found.values().find(({ metadata }) => metadata?.labels?.[engineLabel] === engine);
      if (!wake?.idleAfterSeconds || deployment === undefined) continue;
      const replicas = deployment.spec?.replicas ?? 1;
      const isReady = deployment.status?.readyReplicas ?? 0;
      // Idle is what was seen to be idle, from here on: by an operator that has just started, too.
      if (isReady === 0 || !usedAt.has(engine)) usedAt.set(engine, time);
      const waiting = demand.values().reduce((sum, { of }) => sum + (of[engine] ?? 0), 0);
      const idleMs = isKnown ? time - (usedAt.get(engine) ?? time) : null;
      const next = decideWake({ wake, replicas, ready: isReady, waiting, toProve: awaited.has(engine), idleMs });
      if (next === undefined) continue;
      const { name = "" } = deployment.metadata ?? {};
      const after = await kube.apply(deployments, { metadata: { namespace, name }, spec: { replicas: next } } as V1Deployment, { manager });
      found.set(`${namespace}/${name}`, after);
      usedAt.set(engine, time);
      if (next > 0 && replicas > 0) continue;
      scaled.inc({ engine, to: next === 0 ? "sleep" : "wake" });
      const why = waiting > 0 ? `${waiting} requests wait for it` : "a version is to be proven";
      const idle = `engine is scaled to zero: nobody has asked it for ${wake.idleAfterSeconds} s`;
      log.info({ engine, replicas: next }, next === 0 ? idle : `engine is started: ${why}`);
    }
  };

  await Promise.race([ready.promise, new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }))]);
  let said = "";
  while (!signal.aborted) {
    await look().then(
      () => (said = ""),
      (error: unknown) => {
        const why = error instanceof Error ? error.message : String(error);
        if (why !== said) log.warn({ err: error }, "an engine could not be scaled; trying again");
        said = why;
      },
    );
    await new Promise((resolve) => setTimeout(resolve, lookEveryMs));
  }
  await Promise.all(watching);
}
