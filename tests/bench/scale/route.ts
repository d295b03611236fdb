/** A routing decision, for a name that few replicas hold and for one that all of them hold, with more and more replicas. */
import { type BucketDef, buckets } from "@loraline/contracts";
import type { Bus } from "@loraline/bus";
import { decideRoute } from "../../../services/gateway/src/inference/decide-route.ts";
import { createRoutingTable } from "../../../services/gateway/src/inference/routing-table.ts";
import type { ScaleRow } from "../scale.ts";
import { cpuMs } from "../table.ts";
import { adapterState, base, engine, engineRecord, holdings, type LineSize, report, tenantOf } from "./tables.ts";

const before: Record<string, string> = {
  "100 on 2": "0.009 ms",
  "1000 on 2": "0.065 ms",
  "100 on all": "0.027 ms",
  "1000 on all": "0.34 ms",
};

/** A bus whose buckets hold what is given, and change no more. */
const fixedBus = (entries: Record<string, Iterable<[string, unknown]>>): Pick<Bus, "bucket"> =>
  ({
    bucket: async ({ name }: BucketDef) => ({
      async watch({ onChange, onReady }: { onChange(key: string, value: unknown): void; onReady?(): void }) {
        for (const [key, value] of entries[name] ?? []) onChange(key, value);
        onReady?.();
      },
    }),
  }) as unknown as Pick<Bus, "bucket">;

export async function scaleRoute(): Promise<ScaleRow[]> {
  const rows: ScaleRow[] = [];
  for (const replicas of [100, 1000]) {
    const size: LineSize = { adapters: 2000, replicas, tenants: 200, copies: 2 };
    const numbers = Array.from({ length: size.adapters }, (_, n) => n);
    const stopping = new AbortController();
    const bus = fixedBus({
      [buckets.engines.name]: [[engine, engineRecord]],
      [buckets.adapters.name]: numbers.map((n) => [`${tenantOf(n, size)}.a${n}`, adapterState(n, size)]),
      [buckets.replicas.name]: Array.from({ length: replicas }, (_, n) => [`${engine}.r${n}`, report(n, "http://127.0.0.1:1")]),
      [buckets.holdings.name]: numbers.flatMap((n) =>
        holdings(n, size).map(({ replica, value }): [string, unknown] => [`${engine}.${replica}.${tenantOf(n, size)}.a${n}`, value]),
      ),
    });
    const table = await createRoutingTable({ bus, signal: stopping.signal });
    for (const where of ["2", "all"] as const) {
      const ask = (n: number): void => {
        const asked = { tenant: tenantOf(n, size), model: where === "all" ? base : `${tenantOf(n, size)}/a${n}` };
        const decision = decideRoute(table.view(), asked);
        if (decision.kind !== "route") throw new Error(`${asked.model}: ${JSON.stringify(decision)}`);
        // Requests in flight, so that some replicas are over their bound.
        const leave = table.begin(decision.replicas[0]);
        leaving.push(leave);
        if (leaving.length > replicas * 2) leaving.shift()?.();
      };
      const leaving: (() => void)[] = [];
      for (let n = 0; n < 500; n++) ask(n % size.adapters);
      let count = 0;
      const from = cpuMs();
      while (cpuMs() - from < 1500) for (let n = 0; n < 100; n++) ask(count++ % size.adapters);
      const each = (cpuMs() - from) / count;
      for (const leave of leaving) leave();
      rows.push({
        what: `a route among ${replicas} replicas, of a name on ${where} of them`,
        value: `${each.toFixed(4)} ms of CPU`,
        before: before[`${replicas} on ${where}`] ?? "?",
        limit: "0.05 ms whatever the number of replicas",
        detail: `${count} decisions, ${replicas * 2} requests in flight`,
      });
    }
    stopping.abort();
  }
  return rows;
}
