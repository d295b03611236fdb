/** What the gateway lets nobody do to engines: share a prefix cache with another tenant, or have it ask an address that is no replica's. */
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { buckets, engineList } from "@loraline/contracts";
import { test } from "@loraline/testkit";
import { expect } from "vitest";
import { base, type GatewayUnderTest, putReplica, registerEngine, replicaOf, startEngine, startGateway } from "../../gateway-under-test.ts";

const ask = (line: GatewayUnderTest, key: string, path: string, body: object): Promise<Response> =>
  fetch(`${line.url}/v1/${path}`, {
    method: "POST",
    headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
    body: JSON.stringify({ model: base, messages: [], prompt: "x", input: "x", ...body }),
  });

test("each tenant has a prefix cache of its own, which a client can only divide", async ({ nc, tenant }) => {
  const secret = "of this installation";
  await using line = await startGateway({ nc, tenant, projector: false, secret });
  await using twin = await startGateway({ nc, tenant, projector: false, secret });
  await using engine = await startEngine(base);
  await registerEngine(line.bus, { tasks: ["generate", "embed"] });
  await putReplica(line.bus, replicaOf(`r-${tenant}`, engine.url));
  await expect.poll(async () => (await ask(line, line.key, "chat/completions", {})).status).toBe(200);
  const other = await line.keyFor(`${tenant}-other`);
  const saltOf = async (of: GatewayUnderTest, key: string, path: string, body: object = {}) => {
    await ask(of, key, path, body);
    return engine.requests.at(-1)?.body["cache_salt"];
  };
  const own = await saltOf(line, line.key, "chat/completions");
  // vLLM takes 128 characters at most, and neither @ nor slashes.
  expect(own).toMatch(/^[\w-]{43}$/);
  for (const path of ["chat/completions", "completions", "embeddings"]) {
    expect(await saltOf(line, line.key, path), path).toBe(own);
    expect(await saltOf(line, line.key, path, { stream: true }), path).toBe(own);
    expect(await saltOf(twin, line.key, path), path).toBe(own);
    const others = await saltOf(line, other, path);
    expect(others, path).toMatch(/^[\w-]{43}$/);
    expect(others, path).not.toBe(own);
    // The other tenant claims the salt that it has seen somewhere.
    const claimed = await saltOf(line, other, path, { cache_salt: own });
    expect(claimed, path).not.toBe(own);
    expect(claimed, path).not.toBe(others);
    expect(await saltOf(line, line.key, path, { cache_salt: "per user" }), path).not.toBe(own);
    expect(await saltOf(line, line.key, path, { cache_salt: null }), path).toBe(own);
  }
  const wrong = await ask(line, line.key, "completions", { cache_salt: { a: 1 } });
  expect([wrong.status, await wrong.json()]).toMatchObject([400, { error: { code: "invalid_type", param: "cache_salt" } }]);
  await (await line.bus.bucket(buckets.replicas)).delete(`local.r-${tenant}`);
});

test("each tenant has pictures of its own, whatever the other sends", async ({ nc, tenant }) => {
  await using line = await startGateway({ nc, tenant, projector: false });
  await using engine = await startEngine(base);
  await registerEngine(line.bus, { pictures: 2 });
  await putReplica(line.bus, replicaOf(`r-${tenant}`, engine.url));
  await expect.poll(async () => (await ask(line, line.key, "chat/completions", {})).status).toBe(200);
  const [red, blue] = ["data:image/png;base64,cmVk", "data:image/png;base64,Ymx1ZQ=="];
  const uuidsOf = async (key: string, ...urls: string[]) => {
    const content = [...urls.map((url) => ({ type: "image_url", image_url: { url } })), { type: "text", text: "What is this?" }];
    expect((await ask(line, key, "chat/completions", { messages: [{ role: "user", content }] })).status).toBe(200);
    const sent = engine.requests.at(-1)?.body["messages"] as { content: { uuid?: string }[] }[] | undefined;
    const parts = sent?.[0]?.content ?? [];
    expect(parts).toMatchObject(content);
    return parts.map(({ uuid }) => uuid);
  };
  const [own, ofBlue, ofText] = await uuidsOf(line.key, red, blue);
  expect([own, ofBlue, ofText]).toEqual([expect.stringMatching(/^[\w-]{43}$/), expect.stringMatching(/^[\w-]{43}$/), undefined]);
  expect(own).not.toBe(ofBlue);
  expect(await uuidsOf(line.key, red)).toEqual([own, undefined]);
  const [others] = await uuidsOf(await line.keyFor(`${tenant}-other`), red);
  expect(others).toMatch(/^[\w-]{43}$/);
  expect(others).not.toBe(own);
  await (await line.bus.bucket(buckets.replicas)).delete(`local.r-${tenant}`);
});

test("an address that no replica may have is not asked, and `engines` says why", async ({ nc, tenant }) => {
  let asked = 0;
  const secretServer = createServer((_request, response) => {
    asked += 1;
    response.end("{}");
  });
  await new Promise<void>((resolve) => secretServer.listen(0, "127.0.0.1", resolve));
  const { port } = secretServer.address() as AddressInfo;
  await using line = await startGateway({ nc, tenant, projector: false, replicaHosts: ["10.4.0.0/16:8000"] });
  const engine = `engine-${tenant}`;
  const name = `base-${tenant}`;
  await registerEngine(line.bus, { engine, base: { name, revision: "1", digest: `sha256:${"b".repeat(64)}` }, tenants: [tenant] });
  await putReplica(line.bus, replicaOf("forged", `http://127.0.0.1:${port}`, [], { engine, base: name }));
  await putReplica(line.bus, replicaOf("pathed", `http://10.4.0.1:8000/admin?x=`, [], { engine, base: name }));
  const view = async () =>
    engineList.parse(await (await line.fetch("/v1/loraline/engines")).json()).data.find((each) => each.engine === engine);
  const refused = (why: RegExp) => ({ ready: false, problem: { code: "REPLICA_URL_REFUSED", message: expect.stringMatching(why) } });
  await expect
    .poll(async () => (await view())?.replicas)
    .toMatchObject([
      { replica: "forged", ...refused(/127\.0\.0\.1:\d+ is none of the hosts that replicas may have \(10\.4/) },
      { replica: "pathed", ...refused(/has a path/) },
    ]);
  const answer = await ask(line, line.key, "chat/completions", { model: name });
  expect([answer.status, await answer.json()]).toMatchObject([503, { error: { code: "model_not_ready" } }]);
  expect(asked).toBe(0);
  secretServer.close();
});

test("a replica that sends the gateway elsewhere is not followed", async ({ nc, tenant }) => {
  const followed: string[] = [];
  const server = createServer((request, response) => {
    followed.push(request.url ?? "");
    response.writeHead(307, { location: "/elsewhere" }).end();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await using line = await startGateway({ nc, tenant, projector: false });
  const engine = `engine-${tenant}`;
  const name = `base-${tenant}`;
  await registerEngine(line.bus, { engine, base: { name, revision: "1", digest: `sha256:${"b".repeat(64)}` }, tenants: [tenant] });
  await putReplica(line.bus, replicaOf("moved", `http://127.0.0.1:${port}`, [], { engine, base: name }));
  await expect.poll(async () => (await ask(line, line.key, "completions", { model: name })).status).not.toBe(404);
  await ask(line, line.key, "completions", { model: name });
  expect(new Set(followed)).toEqual(new Set(["/v1/completions"]));
  server.closeAllConnections();
  server.close();
});
