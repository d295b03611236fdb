/** A gateway on the tables of a large line: its start, its memory, and what a chat and a look at the engines cost there. */
import { readFile } from "node:fs/promises";
import { adapterKey, buckets, holdingKey, replicaKey } from "@loraline/contracts";
import { eventually } from "../../line-under-test.ts";
import { cannon, loadSeconds, node, startStack } from "../gateway.ts";
import type { ScaleRow } from "../scale.ts";
import { adapterState, base, engine, engineRecord, holdings, largeLine as size, replicaOf, report } from "./tables.ts";

export async function scaleGateway(): Promise<ScaleRow[]> {
  await using owned = new AsyncDisposableStack();
  const nullEngine = owned.use(await node("tests/bench/null-engine.ts", {}, (line) => line));
  const url = nullEngine.said;
  let began = 0;
  const stack = owned.use(
    await startStack(async ({ nc, bus }) => {
      const engines = await bus.bucket(buckets.engines);
      await engines.put(engine, engineRecord);
      // Without waiting for each acknowledgement, as a bucket's `put` would.
      const put = (bucket: { name: string }, key: string, value: unknown): void =>
        nc.publish(`$KV.${bucket.name}.${key}`, JSON.stringify(value));
      for (let n = 0; n < size.adapters; n++) {
        const state = adapterState(n, size);
        put(buckets.adapters, adapterKey(state), state);
        for (const { replica, value } of holdings(n, size))
          put(buckets.holdings, holdingKey({ replicaKey: replicaKey({ engine, replica }), adapterKey: adapterKey(state) }), value);
        if (n % 500 === 0) await nc.flush();
      }
      await nc.flush();
      const beat = (): void => {
        for (let n = 0; n < size.replicas; n++) put(buckets.replicas, replicaKey({ engine, replica: replicaOf(n) }), report(n, url));
      };
      beat();
      const timer = setInterval(beat, 3000);
      owned.defer(() => clearInterval(timer));
      await nc.flush();
      began = performance.now();
    }),
  );
  const startMs = performance.now() - began;
  const { gateway, key, bus } = stack;
  const startCpu = await gateway.cpu();
  const startRss = await gateway.rss();
  const auth = { authorization: `Bearer ${key}` };
  // The bench's tenant has no adapter of its own yet.
  const own = { ...adapterState(0, size), tenant: "bench", adapter: "own" };
  await (await bus.bucket(buckets.adapters)).put(adapterKey(own), own);
  const ask = (path: string, body?: object): Promise<Response> =>
    fetch(`${gateway.said}${path}`, {
      ...(body === undefined ? {} : { method: "POST", body: JSON.stringify(body) }),
      headers: { ...auth, "content-type": "application/json" },
    });
  const messages = [{ role: "user", content: "hello" }];
  for (const model of ["bench/own", base])
    await eventually(`${model} answers`, 60_000, async () =>
      (await ask("/v1/chat/completions", { model, messages })).ok ? true : undefined,
    );

  const chats: string[] = [];
  for (const model of ["bench/own", base]) {
    const target = { name: model, url: gateway.said, headers: auth, model };
    await cannon(target, 16, { messages });
    const before = await gateway.cpu();
    const { perSecond, failed } = await cannon(target, 16, { messages });
    const cpu = (await gateway.cpu()) - before;
    chats.push(`${Math.round((perSecond * loadSeconds) / cpu)}${failed > 0 ? ` (${failed} failed)` : ""}`);
  }
  const rss = await gateway.rss();
  const status = await readFile(`/proc/${gateway.process.pid}/status`, "utf8");
  const peak = Number(/VmHWM:\s+(\d+) kB/.exec(status)?.[1]) / 1024;

  const looks = 20;
  const lookBefore = await gateway.cpu();
  for (let n = 0; n < looks; n++) await (await ask("/v1/loraline/engines")).arrayBuffer();
  const lookMs = (((await gateway.cpu()) - lookBefore) * 1000) / looks;

  const line = `${size.adapters} adapters × ${size.replicas} replicas × ${size.tenants} tenants, each adapter on ${size.copies} replicas`;
  return [
    {
      what: `a gateway's memory with ${line}`,
      value: `${Math.round(rss)} MiB resident under load`,
      before: "530 MiB, 658 at most, at a fifth of the size",
      limit: "512 MiB",
      detail: `${Math.round(startRss)} MiB after its start, ${Math.round(peak)} MiB at most; it starts in ${(startMs / 1000).toFixed(1)} s, ${startCpu.toFixed(1)} s of CPU`,
    },
    {
      what: "chats per second of one core there, null engine, key checked",
      value: `${chats[0]} to an adapter on ${size.copies} replicas, ${chats[1]} to the base on all`,
      before: "5,820 and 3,270 at a fifth of the size; 170–200 to one on all of 1,000 (review)",
      limit: "5,000",
      detail: `autocannon, 16 connections, ${loadSeconds} s each; requests by the gateway's CPU time, its heartbeats included`,
    },
    {
      what: "`GET /v1/loraline/engines` there",
      value: `${lookMs.toFixed(0)} ms of CPU`,
      before: "8 ms at a fifth of the size",
      limit: "no look at all adapters",
      detail: `mean of ${looks}; it lists ${size.replicas} replicas`,
    },
  ];
}
