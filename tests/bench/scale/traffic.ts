/** What ten busy gateways tell through NATS of a thousand names each, to a hundred agents, to each other and to the controller. */
import { connectBus, createBus, ensureStreams } from "@loraline/bus";
import { buckets, everyTraffic } from "@loraline/contracts";
import { createLog, createTelemetry } from "@loraline/runtime";
import { spawnNatsServer } from "@loraline/testkit/servers";
import { createTraffic } from "../../../services/gateway/src/inference/traffic.ts";
import { createWorkingSet } from "../../../services/gateway/src/inference/working-set.ts";
import { createTrafficView } from "../../../services/serve/src/agent/traffic-view.ts";
import type { ScaleRow } from "../scale.ts";
import { cpuMs } from "../table.ts";
import { engine } from "./tables.ts";

const gateways = 10;
const names = 1000;
const agents = 100;
const seconds = 10;
/** Replicas that drain meanwhile, each an adapter with requests in flight. */
const draining = 5;

export async function scaleTraffic(): Promise<ScaleRow[]> {
  await using owned = new AsyncDisposableStack();
  const nats = owned.use(await spawnNatsServer());
  const log = createLog({ service: "bench", level: "error" });
  const telemetry = owned.use(createTelemetry({ service: "bench" }));
  const connect = async (name: string) => {
    const nc = await connectBus({ servers: nats.url, name });
    owned.defer(() => nc.close());
    return { nc, bus: createBus({ nc, log, telemetry, source: name }) };
  };
  const [toGateways, toAgents, toServe] = [await connect("gateways"), await connect("agents"), await connect("serve")];
  await ensureStreams(toGateways.nc);
  const { signal } = new AbortController();
  const canary = new Set(["t0.a0.v1.0123456789ab", "t0.a0.v2.0123456789ab"]);
  let isDraining = false;
  const begin: (() => void)[] = [];
  const table = {
    isRouted: ({ engineModel }: { engineModel: string }) => !/\.v9\./.test(engineModel),
    isAnyDraining: () => isDraining,
    engine: () => undefined,
    comparedNames: () => canary,
  };
  for (let n = 0; n < agents; n++) await createTrafficView({ bus: toAgents.bus, replica: `r${n}`, signal });
  for (let n = 0; n < gateways; n++) await createWorkingSet({ bus: toGateways.bus, signal });
  await (await toServe.bus.bucket(buckets.traffic)).watch({ filter: everyTraffic.canary, signal, onChange: () => {} });
  for (let n = 0; n < gateways; n++) {
    const traffic = owned.use(await createTraffic({ bus: toGateways.bus, log, table }));
    begin.push(() => {
      for (let r = 0; r < draining; r++) traffic.begin({ engineModel: `t${r}.a${r}.v9.0123456789ab`, engine, replica: `r${r}` });
    });
    const timer = setInterval(() => {
      for (let name = 0; name < names; name++)
        traffic.begin({ engineModel: `t${name % 50}.a${name}.v1.0123456789ab`, engine, replica: `r${name % agents}` }).end("served");
    }, 500);
    owned.defer(() => clearInterval(timer));
  }
  const bytes = () => [toGateways, toAgents, toServe].map(({ nc }) => nc.stats().inBytes);
  /** kB a second to gateways, agents and serve; ms of CPU a second. */
  const measure = async () => {
    await new Promise((resolve) => setTimeout(resolve, 2000));
    const [before, cpuFrom] = [bytes(), cpuMs()];
    await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
    const [gateway = 0, agent = 0, serve = 0] = bytes().map((now, n) => Math.round((now - (before[n] ?? 0)) / seconds / 1000));
    return { gateway, agent, serve, cpu: Math.round((cpuMs() - cpuFrom) / seconds) };
  };
  const rest = await measure();
  isDraining = true;
  for (const each of begin) each();
  const drain = await measure();
  return [
    {
      what: `traffic from ${gateways} gateways with ${names} active names each to ${agents} agents`,
      value: `${rest.agent} kB/s to all agents, ${drain.agent} kB/s while ${draining} replicas drain`,
      before: "304,000 kB/s (by 304 B for each name, each second, to each agent)",
      limit: "1 MB/s",
      detail: `one canary runs; ${drain.gateway} kB/s to the gateways, ${drain.serve} kB/s to serve; ${drain.cpu} ms of CPU a second in all of these together, which count ${(gateways * names * 2).toLocaleString("en")} requests a second`,
    },
  ];
}
