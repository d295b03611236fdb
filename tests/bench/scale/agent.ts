/** What an agent reads when it starts in a large line: its own assignments, among those of all replicas. Before, it read every adapter. */
import { connectBus, createBus, ensureStreams } from "@loraline/bus";
import { assignmentsTo, buckets } from "@loraline/contracts";
import { createLog, createTelemetry } from "@loraline/runtime";
import { spawnNatsServer } from "@loraline/testkit/servers";
import { createWantedSet } from "../../../services/serve/src/agent/adapters/wanted-set.ts";
import { assignmentsOf } from "../../../services/serve/src/controller/placement/decide-assignments.ts";
import type { ScaleRow } from "../scale.ts";
import { cpuMs } from "../table.ts";
import { adapterState, engine, largeLine as size, replicaOf } from "./tables.ts";

export async function scaleAgent(): Promise<ScaleRow[]> {
  await using owned = new AsyncDisposableStack();
  const nats = owned.use(await spawnNatsServer());
  const log = createLog({ service: "bench", level: "error" });
  const telemetry = owned.use(createTelemetry({ service: "bench" }));
  const connect = async (name: string) => {
    const nc = await connectBus({ servers: nats.url, name });
    owned.defer(() => nc.close());
    return { nc, bus: createBus({ nc, log, telemetry, source: name }) };
  };
  const controller = await connect("serve");
  await ensureStreams(controller.nc);
  for (let n = 0; n < size.adapters; n++) {
    // Without waiting for each acknowledgement, as a bucket's `put` would.
    for (const [key, value] of assignmentsOf(adapterState(n, size)))
      controller.nc.publish(`$KV.${buckets.assignments.name}.${key}`, JSON.stringify(value));
    if (n % 500 === 0) await controller.nc.flush();
  }
  const assignments = await controller.bus.bucket(buckets.assignments);
  await assignments.put(engine, { versions: [] });

  const agent = await connect("agent");
  const bucket = await agent.bus.bucket(buckets.assignments);
  const wanted = createWantedSet();
  const ready = Promise.withResolvers<void>();
  const [bytesBefore, cpuBefore, from] = [agent.nc.stats().inBytes, cpuMs(), performance.now()];
  const stopping = new AbortController();
  await bucket.watch({
    filter: assignmentsTo({ engine, replica: replicaOf(0) }),
    signal: stopping.signal,
    onChange: (key, entry) => void wanted.take(key, entry),
    onReady: ready.resolve,
  });
  await ready.promise;
  const [ms, cpu, bytes] = [performance.now() - from, cpuMs() - cpuBefore, agent.nc.stats().inBytes - bytesBefore];
  stopping.abort();
  return [
    {
      what: `what an agent reads at its start, ${size.adapters} adapters on ${size.replicas} replicas, ${wanted.adapters.size} of them on its own`,
      value: `${(bytes / 1e6).toFixed(2)} MB, ${cpu.toFixed(0)} ms of CPU`,
      before: "306 MB, 21 s of CPU: every adapter (by 3,064 B and 0.208 ms each)",
      limit: "what it holds, not all that exists",
      detail: `${ms.toFixed(0)} ms until it knows what is wanted`,
    },
  ];
}
