/**
 * Compares affinity with random routing when there are more adapters than slots. Simulated: two engines whose slots are replaced by least
 * recent use. An adapter that is in no slot must be loaded, and meanwhile the engine answers no request.
 */
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { createBus, ensureStreams } from "@loraline/bus";
import { createJetStreamObjects } from "@loraline/objects";
import { createLog, createTelemetry } from "@loraline/runtime";
import { spawnNatsServer } from "@loraline/testkit/servers";
import { request } from "undici";
import { createApiKey } from "../../services/gateway/src/access/auth.ts";
import {
  adapterOf,
  heldBy,
  putAdapter,
  putReplica,
  registerEngine,
  replicaOf,
  versionOf,
} from "../../services/gateway/src/gateway-under-test.ts";
import { createGatewayService } from "../../services/gateway/src/service.ts";
import { eventually } from "../line-under-test.ts";
import { percentile, type Row } from "./table.ts";

const tenant = "bench";
const slots = 4;
const loadMs = 50;
const answerMs = 15;
const atOnce = 8;
const requests = 600;
const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

async function startSlottedEngine() {
  const held: string[] = [];
  let loads = 0;
  let asked = 0;
  let loading: Promise<unknown> = Promise.resolve();
  const server = createServer((incoming, response) => {
    const parts: Buffer[] = [];
    incoming.on("data", (part: Buffer) => parts.push(part));
    incoming.on("end", () => {
      const { model } = JSON.parse(Buffer.concat(parts).toString()) as { model: string };
      asked += 1;
      const ready = loading.then(async () => {
        const at = held.indexOf(model);
        if (at >= 0) held.splice(at, 1);
        else {
          loads += 1;
          if (held.length >= slots) held.shift();
          await sleep(loadMs);
        }
        held.push(model);
      });
      loading = ready;
      void ready
        .then(() => sleep(answerMs))
        .then(() => {
          const choices = [{ index: 0, message: { role: "assistant", content: "Arr" }, finish_reason: "stop" }];
          response
            .writeHead(200, { "content-type": "application/json" })
            .end(JSON.stringify({ id: "x", object: "chat.completion", created: 1, model, choices }));
        });
    });
  });
  await new Promise<void>((resolve) => {
    server.listen(0, "127.0.0.1", resolve);
  });
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    counts: () => ({ loads, asked }),
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => {
        server.close(resolve);
      });
    },
  };
}

export async function measureAffinity(): Promise<Row[]> {
  const rows: Row[] = [];
  await using nats = await spawnNatsServer();
  const nc = await nats.connect();
  await ensureStreams(nc);
  const log = createLog({ service: "bench", level: "error" });
  await using telemetry = createTelemetry({ service: "bench" });
  const bus = createBus({ nc, log, telemetry, source: "bench" });
  const objects = await createJetStreamObjects(nc);
  await registerEngine(bus, { maxLoras: slots });
  const key = await createApiKey({ bus }, { tenant, name: "bench" });
  for (const count of [8, 16]) {
    const told: string[] = [];
    for (const routeAtRandom of [false, true]) {
      await using first = await startSlottedEngine();
      await using second = await startSlottedEngine();
      const adapters = Array.from({ length: count }, (_, index) => {
        const version = versionOf(tenant, `a${index}`, 1);
        return { version, state: adapterOf(tenant, `a${index}`, [version]) };
      });
      for (const { state } of adapters) await putAdapter(bus, state);
      const held = adapters.map(({ state, version }) => heldBy(state, version));
      await putReplica(bus, replicaOf("r1", first.url, held));
      await putReplica(bus, replicaOf("r2", second.url, held));
      await using gateway = await createGatewayService({ bus, objects, log, telemetry, host: "127.0.0.1", port: 0, routeAtRandom });
      const ask = async (adapter: number): Promise<number> => {
        const began = performance.now();
        const answer = await request(`${gateway.url}/v1/chat/completions`, {
          method: "POST",
          headers: { "content-type": "application/json", authorization: `Bearer ${key}` },
          body: JSON.stringify({ model: `${tenant}/a${adapter}`, messages: [] }),
        });
        await answer.body.dump();
        if (answer.statusCode !== 200) throw new Error(`answered ${answer.statusCode}`);
        return performance.now() - began;
      };
      await eventually("the last adapter answers", 20_000, () => ask(count - 1));
      for (let index = 0; index < count; index++) await ask(index);
      const before = [first.counts(), second.counts()];
      const times: number[] = [];
      let next = 0;
      // A fixed pseudo-random order, the same for both.
      const order = Array.from({ length: requests }, (_, index) => (Math.imul(index + 1, 2_654_435_761) >>> 8) % count);
      const began = performance.now();
      await Promise.all(
        Array.from({ length: atOnce }, async () => {
          while (next < requests) times.push(await ask(order[next++] ?? 0));
        }),
      );
      const seconds = (performance.now() - began) / 1000;
      const after = [first.counts(), second.counts()];
      const loads = after.reduce((sum, { loads: all }, index) => sum + all - (before[index]?.loads ?? 0), 0);
      told.push(
        `${routeAtRandom ? "random" : "affinity"} ${(requests / seconds).toFixed(0)}/s, p50 ${percentile(times, 50)} ms, p99 ${percentile(times, 99)} ms, ${((100 * loads) / requests).toFixed(0)} % found no slot`,
      );
    }
    rows.push({
      what: `Gateway: ${count} adapters on 2 replicas of ${slots} slots`,
      value: told.join("; "),
      detail: `simulated engines: ${answerMs} ms an answer, ${loadMs} ms a load; ${requests} requests, ${atOnce} at once, adapters drawn evenly`,
    });
  }
  await nc.close();
  return rows;
}
