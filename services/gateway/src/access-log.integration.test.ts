/** Every answer is counted and logged, whoever gives it; an outage of an engine shows in metrics, in usage and in what clients are told. */
import { connect } from "node:net";
import { buckets, type UsageRow } from "@loraline/contracts";
import { test } from "@loraline/testkit";
import { expect } from "vitest";
import {
  adapterOf,
  base,
  heldBy,
  putAdapter,
  putReplica,
  registerEngine,
  replicaOf,
  startEngine,
  startGateway,
  versionOf,
} from "./gateway-under-test.ts";

const messages = [{ role: "user", content: "ahoy" }];

test("200, 400, 401, 404, 429 and 503 are counted and logged with tenant, model, route and error", async ({ nc, tenant }) => {
  await using line = await startGateway({ nc, tenant, projector: false });
  const version = versionOf(tenant, "pirate", 1);
  const adapter = adapterOf(tenant, "pirate", [version]);
  await using engine = await startEngine(base, version.engineName);
  const { engine: name } = await registerEngine(line.bus, { engine: `of-${tenant}` });
  await putAdapter(line.bus, { ...adapter, engine: name });
  const replica = { ...replicaOf("uid-1", engine.url, [heldBy(adapter, version)]), engine: name, pod: "engine-smol-x7k2p" };
  await putReplica(line.bus, replica);
  const model = `${tenant}/pirate`;
  const chat = async (body: object, key = line.key): Promise<Response> => {
    const answer = await fetch(`${line.url}/v1/chat/completions`, {
      method: "POST",
      headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
      body: JSON.stringify({ messages, ...body }),
    });
    await answer.clone().text();
    return answer;
  };
  await expect.poll(async () => (await chat({ model })).status).toBe(200);
  const key401 = "ll-0123456789012345678901234567890123456789012";
  expect((await chat({ model }, key401)).status).toBe(401);
  expect((await chat({})).status).toBe(400);
  for (const invented of ["a", "b", "c"]) expect((await chat({ model: `${tenant}/${invented}` })).status).toBe(404);
  expect((await line.fetch("/v1/nothing-here")).status).toBe(404);
  expect(await malformed(line.url)).toContain("400 Bad Request");
  await (await line.bus.bucket(buckets.limits)).put(tenant, { requestsPerMinute: 1, by: "test", at: new Date().toISOString() });
  await expect.poll(async () => (await chat({ model })).status).toBe(429);
  await (await line.bus.bucket(buckets.limits)).delete(tenant);
  await expect.poll(async () => (await chat({ model })).status).toBe(200);

  // The only replica is not ready any more.
  await putReplica(line.bus, { ...replica, ready: false });
  await expect.poll(async () => (await chat({ model })).status).toBe(503);
  const refused = await chat({ model: `${model}@1` });
  const { error } = (await refused.json()) as { error: { code: string; message: string } };
  expect(error).toMatchObject({ code: "model_not_ready", message: expect.stringContaining("replica engine-smol-x7k2p is not ready") });
  // Nobody knows yet how long such an outage lasts: half a minute is expected, and a second or two of it are over.
  expect(Number(refused.headers.get("retry-after"))).toBeGreaterThan(20);

  const scraped = async (): Promise<string[]> => (await (await fetch(line.metricsUrl)).text()).split("\n");
  const route = `route="/v1/chat/completions",method="POST"`;
  const counted = async (labels: string): Promise<number> => {
    const found = (await scraped()).find((text) => text.startsWith(`loraline_gateway_http_requests_total{${labels}}`));
    return Number(found?.split(" ").at(-1) ?? 0);
  };
  await expect
    .poll(() => counted(`${route},code="503",error="model_not_ready",tenant="${tenant}",model="${model}"`))
    .toBeGreaterThanOrEqual(2);
  expect(await counted(`${route},code="401",error="invalid_api_key",tenant="unknown",model=""`)).toBe(1);
  expect(await counted(`${route},code="400",error="missing_model",tenant="${tenant}",model=""`)).toBe(1);
  expect(await counted(`${route},code="404",error="model_not_found",tenant="${tenant}",model="unknown"`)).toBeGreaterThanOrEqual(3);
  expect(await counted(`route="",method="",code="404",error="unknown_url",tenant="unknown",model=""`)).toBe(1);
  expect(await counted(`route="",method="",code="400",error="bad_request",tenant="unknown",model=""`)).toBe(1);
  expect(await counted(`${route},code="429",error="rate_limit_exceeded",tenant="${tenant}",model="${model}"`)).toBeGreaterThanOrEqual(1);
  const lines = await scraped();
  expect(lines).toContain(`loraline_engine_replicas{engine="${name}",base="${base}",state="ready"} 0`);
  expect(lines).toContain(`loraline_engine_replicas{engine="${name}",base="${base}",state="unready"} 1`);
  const failed = `loraline_gateway_requests_total{tenant="${tenant}",base="${base}",adapter="pirate",version="1",outcome="failed"}`;
  expect(lines.find((text) => text.startsWith(failed))).toMatch(/ [2-9]\d*$/);

  const usage = (await (await line.fetch("/v1/loraline/usage")).json()) as { data: UsageRow[] };
  expect(usage.data).toMatchObject([{ model: `${model}@1`, failed: expect.any(Number) }]);
  expect(usage.data[0]?.failed).toBeGreaterThanOrEqual(2);
  expect(usage.data[0]?.requests).toBeGreaterThan(usage.data[0]?.failed ?? 0);

  const logged = line.logged.filter(({ msg }) => msg === "request");
  expect(new Set(logged.map(({ status }) => status))).toEqual(new Set([200, 400, 401, 404, 429, 503]));
  expect(logged.find(({ status }) => status === 503)).toMatchObject({
    tenant,
    model,
    route: "/v1/chat/completions",
    path: "/v1/chat/completions",
    error: "model_not_ready",
    by: "test",
    trace_id: expect.stringMatching(/^[0-9a-f]{32}$/),
    durationMs: expect.any(Number),
    requestId: expect.any(String),
  });
  expect(JSON.stringify(logged)).not.toContain("ahoy");
  expect(JSON.stringify(logged)).not.toContain(key401);
});

/** What the gateway says to something that is no HTTP. */
async function malformed(url: string): Promise<string> {
  const socket = connect(Number(new URL(url).port), "127.0.0.1");
  socket.write("this is no HTTP\r\n\r\n");
  const parts: Buffer[] = [];
  for await (const part of socket) parts.push(part as Buffer);
  return Buffer.concat(parts).toString();
}
