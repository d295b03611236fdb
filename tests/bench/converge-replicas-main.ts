/**
 * Simulated replicas in one process, for the benchmark of the controller alone. Each publishes the same messages as an agent (heartbeat,
 * holding and event for each desired adapter), with as many in flight, but without engine, files and proofs. They share one watch of KV
 * `adapters`.
 */
import { connectBus, createBus } from "@loraline/bus";
import { adapterLoaded, type AdapterState, buckets, holdingKey, type Proof, replicaKey } from "@loraline/contracts";
import { createLog, createTelemetry } from "@loraline/runtime";
import { cpuMs } from "./table.ts";

export interface ReplicasSettings {
  servers: string;
  engine: string;
  base: string;
  count: number;
}

/** Writes of a replica that are in flight at once. */
const concurrency = 4;
const heartbeatMs = 3000;
const incarnation = "1";

const { servers, engine, base, count } = JSON.parse(process.argv[2] ?? "{}") as ReplicasSettings;
const nc = await connectBus({ servers, name: "simulated replicas" });
const log = createLog({ service: "replicas", level: process.env["LOG_LEVEL"] ?? "silent" });
const bus = createBus({ nc, log, telemetry: createTelemetry({ service: "replicas" }), source: "agent" });
const [adapters, holdings, replicas] = await Promise.all([
  bus.bucket(buckets.adapters),
  bus.bucket(buckets.holdings),
  bus.bucket(buckets.replicas),
]);
const names = Array.from({ length: count }, (_, n) => `r${n}`);

const proof = (): Proof => ({
  probes: 8,
  tokens: 320,
  agreement: 0.0871,
  agreementLimit: 0.3021,
  effect: 3.4712,
  effectExpected: 3.4698,
  baseAgreement: 0.0774,
  scale: { value: 1.0042, error: 0.0051 },
  provenAt: new Date().toISOString(),
});

async function tell(replica: string, key: string, { tenant, adapter, versions }: AdapterState): Promise<void> {
  const desired = versions.filter(({ status }) => status === "desired");
  const held = desired.map(({ version, digest, engineName }) => ({
    tenant,
    adapter,
    version,
    digest,
    engineName,
    state: "proven" as const,
    blame: null,
    error: null,
    proof: proof(),
    at: new Date().toISOString(),
  }));
  await holdings.put(holdingKey({ replicaKey: replicaKey({ engine, replica }), adapterKey: key }), {
    incarnation,
    agent: replica,
    adapters: held,
  });
  for (const { version, digest, engineName, proof: proven } of held) {
    const data = { version, digest, engine, replica, incarnation, engineName, proof: proven };
    await bus.publish(adapterLoaded, { tenant, id: adapter }, data, { key: `${engineName}/${engine}/${replica}/${incarnation}` });
  }
}

const sendHeartbeat = (): Promise<unknown> =>
  Promise.all(
    names.map((replica) =>
      replicas.put(replicaKey({ engine, replica }), {
        engine,
        base,
        replica,
        incarnation,
        agent: replica,
        url: "http://127.0.0.1:1",
        ready: true,
        at: new Date().toISOString(),
      }),
    ),
  );

const published = new Set<string>();
const desired: [string, AdapterState][] = [];
const wake = new Set<() => void>();
await adapters.watch({
  signal: new AbortController().signal,
  onChange(key, state) {
    if (state === undefined || published.has(key)) return;
    published.add(key);
    desired.push([key, state]);
    for (const resume of wake) resume();
    wake.clear();
  },
});
await sendHeartbeat();
setInterval(() => void sendHeartbeat(), heartbeatMs);
for (const replica of names) {
  let position = 0;
  const work = async (): Promise<void> => {
    for (;;) {
      const next = desired[position];
      if (next === undefined) await new Promise<void>((resolve) => wake.add(resolve));
      else {
        position += 1;
        await tell(replica, ...next);
      }
    }
  };
  for (let n = 0; n < concurrency; n++) void work();
}

process.on("disconnect", () => process.exit());
process.on("message", () => process.send?.({ cpuMs: cpuMs() }));
process.send?.({ ready: true });
