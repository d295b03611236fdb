/** The door itself: keys, errors, tenants kept apart, the bus away, shutdown. */
import { connect } from "node:net";
import { type AdapterState, buckets, canarySettings, type EventDef, events } from "@loraline/contracts";
import { spawnNatsServer, test as testWithNats } from "@loraline/testkit";
import { toFile } from "openai";
import { describe, expect } from "vitest";
import { hashApiKey } from "./access/auth.ts";
import {
  adapterOf,
  base,
  type GatewayUnderTest,
  heldBy,
  putAdapter,
  putReplica,
  registerEngine,
  replicaOf,
  startEngine,
  startGateway,
  versionOf,
} from "./gateway-under-test.ts";

const test = testWithNats.extend("line", async ({ nc, tenant }, { onCleanup }): Promise<GatewayUnderTest> => {
  const line = await startGateway({ nc, tenant, bodyLimitBytes: 10_000 });
  onCleanup(() => line[Symbol.asyncDispose]());
  return line;
});

const json = { "content-type": "application/json" };
const rows = '{"prompt":"ahoy","completion":"Arr"}\n'.repeat(20);

interface Failure {
  status: number;
  error: { message: string; type: string; code: string | null; param: string | null };
}
const failureOf = async (response: Response): Promise<Failure> => ({
  status: response.status,
  ...((await response.json()) as Pick<Failure, "error">),
});

test("a gateway that is disposed watches nothing any more", async ({ line, nc, tenant }) => {
  const signals: AbortSignal[] = [];
  const bucket: typeof line.bus.bucket = async (def) => {
    const opened = await line.bus.bucket(def);
    const watch: typeof opened.watch = (options) => {
      signals.push(options.signal);
      return opened.watch(options);
    };
    return { ...opened, watch };
  };
  const gateway = await startGateway({ nc, tenant, projector: false, bus: { ...line.bus, bucket } });
  expect(signals.filter(({ aborted }) => aborted)).toEqual([]);
  await gateway[Symbol.asyncDispose]();
  expect(signals.length).toBeGreaterThan(4);
  expect(signals.filter(({ aborted }) => !aborted)).toEqual([]);
});

describe("keys", () => {
  test("open only with the right one; only their hash is kept", async ({ line }) => {
    for (const authorization of [undefined, "", "Bearer", "Basic abc", `Bearer ${line.key}x`, `Bearer ${hashApiKey(line.key)}`]) {
      const response = await fetch(`${line.url}/v1/models`, { headers: authorization === undefined ? {} : { authorization } });
      expect(await failureOf(response)).toMatchObject({ status: 401, error: { code: "invalid_api_key", type: "invalid_request_error" } });
    }
    await expect(line.clientFor("ll-wrong-key-wrong-key").models.list()).rejects.toThrow(/Incorrect API key provided: ll-w\*\*\*-key/);
    expect((await line.openai.models.list()).object).toBe("list");
    const kept = await (await line.bus.bucket(buckets.keys)).entries();
    expect(JSON.stringify(kept)).not.toContain(line.key);
  });

  test("end at once when they are revoked", async ({ line }) => {
    await line.openai.models.list();
    await (await line.bus.bucket(buckets.keys)).delete(hashApiKey(line.key));
    await expect.poll(() => line.openai.models.list().then(String, (error: { status: number }) => error.status)).toBe(401);
  });
});

describe("errors", () => {
  test("have OpenAI's body wherever they come from", async ({ line }) => {
    const post = (body: string, headers: Record<string, string> = json) =>
      line.fetch("/v1/chat/completions", { method: "POST", body, headers }).then(failureOf);
    expect(await post('{"model": ')).toMatchObject({ status: 400, error: { code: "invalid_json", type: "invalid_request_error" } });
    expect(await post("")).toMatchObject({ status: 400, error: { code: "invalid_body" } });
    expect(await post("[]")).toMatchObject({ status: 400, error: { code: "invalid_body" } });
    expect(await post("{}")).toMatchObject({ status: 400, error: { code: "missing_model", param: "model" } });
    expect(await post(JSON.stringify({ model: "x".repeat(20_000) }))).toMatchObject({ status: 413, error: { code: "body_too_large" } });
    expect(await post("a=b", { "content-type": "application/x-www-form-urlencoded" })).toMatchObject({
      status: 415,
      error: { code: "unsupported_media_type" },
    });
    expect(await failureOf(await line.fetch("/v1/nothing"))).toMatchObject({ status: 404, error: { code: "unknown_url" } });
    expect(await failureOf(await line.fetch("/v1/load_lora_adapter", { method: "POST" }))).toMatchObject({ status: 404 });
    const wrongMethod = await line.fetch("/v1/models", { method: "DELETE" });
    expect(wrongMethod.headers.get("allow")).toBe("GET, HEAD");
    expect(await failureOf(wrongMethod)).toMatchObject({ status: 405, error: { code: "method_not_allowed" } });
    expect(await failureOf(await line.fetch("/v1/files/%zz"))).toMatchObject({ status: 400, error: { type: "invalid_request_error" } });
  });

  test("a body of many values, or of more bytes than a command needs, is refused before it is parsed; with a key and without", async ({
    nc,
    tenant,
  }) => {
    await using line = await startGateway({ nc, tenant, projector: false });
    const post = (path: string, body: string, headers: Record<string, string> = {}) =>
      fetch(`${line.url}${path}`, { method: "POST", body, headers: { ...json, ...headers } }).then(failureOf);
    const authorization = `Bearer ${line.key}`;
    const refused = { status: 413, error: { code: "body_too_large" } };
    const values = `{"model":"m","messages":[${"{},".repeat(600_000)}{}]}`;
    expect(await post("/v1/nothing", values)).toMatchObject(refused);
    expect(await post("/v1/chat/completions", values, { authorization })).toMatchObject(refused);
    expect(await post("/v1/fine_tuning/jobs", `{"model":"${"m".repeat(600_000)}"}`, { authorization })).toMatchObject(refused);
    // A picture is one value.
    const picture = `{"model":"m","messages":[{"role":"user","content":"${"a".repeat(4_000_000)}"}]}`;
    expect(await post("/v1/chat/completions", picture, { authorization })).toMatchObject({ status: 404 });
  });

  test("with a thousand problems tell the first ones, and how many there are", async ({ line }) => {
    const keys = Array.from({ length: 500 }, (_, n) => `"k${n}":0`).join(",");
    const body = `{"model":"m","training_file":"f",${keys}}`;
    const { error } = await failureOf(await line.fetch("/v1/fine_tuning/jobs", { method: "POST", body, headers: json }));
    expect(error.message).toMatch(/^k0: .* And 480 more\.$/);
  });

  test("even when the request is not HTTP", async ({ line }) => {
    const { hostname, port } = new URL(line.url);
    const socket = connect(Number(port), hostname);
    socket.write("hello\r\n\r\n");
    let answer = "";
    for await (const part of socket) answer += String(part);
    expect(answer).toMatch(/^HTTP\/1\.1 400 [\s\S]*"invalid_request_error"/);
  });

  test("name the port that is taken", async ({ line, nc, tenant }) => {
    const port = Number(new URL(line.url).port);
    await expect(startGateway({ nc, tenant, port })).rejects.toMatchObject({
      code: "PORT_TAKEN",
      message: expect.stringContaining(String(port)),
    });
  });
});

describe("a body that comes too slowly", () => {
  /** Sends a body in `parts`, one each 50 ms, and resolves with all that was answered. */
  async function trickle(url: string, key: string, path: string, type: string, parts: string[]): Promise<string> {
    const { hostname, port, host } = new URL(url);
    const socket = connect(Number(port), hostname);
    const length = parts.join("").length;
    socket.write(
      `POST ${path} HTTP/1.1\r\nhost: ${host}\r\nauthorization: Bearer ${key}\r\ncontent-type: ${type}\r\ncontent-length: ${length}\r\nconnection: close\r\n\r\n`,
    );
    const sending = (async () => {
      for (const part of parts) {
        if (socket.destroyed) return;
        socket.write(part);
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    })();
    socket.on("error", () => {});
    let answer = "";
    for await (const part of socket) answer += String(part);
    await sending;
    return answer;
  }

  test.for([
    ["/v1/chat/completions", "application/json"],
    ["/v1/files", "multipart/form-data; boundary=b"],
  ] as const)("is cut off, and told why: %s", async ([path, type], { nc, tenant }) => {
    await using line = await startGateway({ nc, tenant, slowBodies: { graceMs: 400, bytesPerSecond: 10_000 } });
    const opening = path === "/v1/files" ? '--b\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n' : "";
    const answer = await trickle(line.url, line.key, path, type, [opening, ...Array.from({ length: 600 }, () => " ")]);
    expect(answer).toMatch(/^HTTP\/1\.1 408 [\s\S]*"request_too_slow"/);
    // Others are served as before.
    expect((await line.fetch("/v1/models")).status).toBe(200);
  });

  test("that is long but fast enough is read to its end", async ({ nc, tenant }) => {
    await using line = await startGateway({ nc, tenant, slowBodies: { graceMs: 400, bytesPerSecond: 1000 } });
    const answer = await trickle(line.url, line.key, "/v1/chat/completions", "application/json", [
      ...Array.from({ length: 30 }, () => " ".repeat(1000)),
      "{}",
    ]);
    expect(answer).toMatch(/^HTTP\/1\.1 400 /);
  });
});

describe("tenants", () => {
  test("use only the engines that are theirs", async ({ line }) => {
    await registerEngine(line.bus, { tenants: ["somebody-else"] });
    await expect.poll(async () => (await line.openai.models.list()).data).toEqual([]);
    const training_file = (await line.openai.files.create({ file: await toFile(Buffer.from(rows), "a.jsonl"), purpose: "fine-tune" })).id;
    await expect(line.openai.fineTuning.jobs.create({ model: base, training_file })).rejects.toMatchObject({
      status: 503,
      code: "NO_ENGINE",
    });
    await registerEngine(line.bus);
  });
});

/** A message that no handler can read, buried by a real consumer; returns its number in the DLQ. */
async function deadLetter({ bus, tenant }: GatewayUnderTest, nc: Parameters<typeof startGateway>[0]["nc"]): Promise<number> {
  nc.publish(`loraline.${tenant}.run.01JD000000000000000000000C.requested.v1`, "not json");
  let seq: number | undefined;
  await expect
    .poll(async () => {
      seq = (await bus.deadLetters.list(tenant))[0]?.seq;
      return seq;
    })
    .toBeDefined();
  return seq ?? 0;
}

describe("loraline's own routes", () => {
  test("promote and roll back through the controller", async ({ line }) => {
    const { bus, tenant } = line;
    const versions = [1, 2].map((number) => versionOf(tenant, "pirate", number));
    const adapter = adapterOf(tenant, "pirate", versions, { alias: 1 });
    await putAdapter(bus, adapter);
    const ask = async (verb: string, body: object, headers = {}) => {
      const asked = { method: "POST", headers: { ...json, ...headers }, body: JSON.stringify(body) };
      return (await line.fetch(`/v1/loraline/adapters/pirate/${verb}`, asked)).json();
    };

    const promoting = ask("promote", { version: 2 });
    await expect
      .poll(() => bus.last(events.adapterPromoteRequested, { tenant, id: "pirate" }))
      .toMatchObject({ data: { version: 2, by: "test" } });
    await putAdapter(bus, { ...adapter, alias: 2 });
    expect(await promoting).toMatchObject({ adapter: { alias: 2 } });

    const followed = async (event: EventDef, over: Partial<AdapterState>, kind: AdapterState["history"][number]["kind"]) => {
      let command: number | undefined;
      await expect.poll(async () => (command = (await bus.last(event, { tenant, id: "pirate" }))?.seq) ?? -1).toBeGreaterThan(told);
      told = command ?? 0;
      const move = { from: 1, to: 2, kind, by: "test", reason: "asked", command, at: new Date().toISOString() };
      await putAdapter(bus, { ...adapter, history: [move], ...over });
    };
    let told = 0;
    const goingBack = ask("rollback", {});
    await followed(events.adapterRollbackRequested, {}, "rolledback");
    expect(await goingBack).toMatchObject({ adapter: { alias: 1 }, canary: null });

    told = (await bus.last(events.adapterPromoteRequested, { tenant, id: "pirate" }))?.seq ?? 0;
    const settings = canarySettings.parse({ steps: [10, 90] });
    const at = new Date().toISOString();
    const canary = { version: 2, from: 1, step: 0, share: 10, since: at, startedAt: at, by: "test", settings, baseline: {} };
    const starting = ask("promote", { version: 2, canary: { steps: [10, 90] } });
    await followed(events.adapterPromoteRequested, { canary }, "canary-started");
    expect(await starting).toMatchObject({ adapter: { alias: 1, canary: { share: 10 } }, canary: { version: { requests: 0 } } });
    expect((await bus.last(events.adapterPromoteRequested, { tenant, id: "pirate" }))?.data.canary).toEqual(settings);
    const ending = ask("rollback", {});
    await followed(events.adapterRollbackRequested, { canary: null }, "canary-ended");
    expect(await ending).toMatchObject({ adapter: { alias: 1, canary: null } });
    expect(await ask("promote", { version: 2, canary: { steps: [50, 10] } })).toMatchObject({
      error: { code: "invalid_body", message: expect.stringContaining("each step must be above the one before it") },
    });

    expect(await ask("promote", { version: 9 })).toMatchObject({ error: { code: "version_unknown", param: "version" } });
    expect(await ask("promote", { verson: 2 })).toMatchObject({
      error: { code: "invalid_body", message: expect.stringContaining("verson") },
    });
    expect(await ask("promote", {})).toMatchObject({ error: { param: "version" } });
    // Nobody moves it.
    const promotions = () => bus.history([events.adapterPromoteRequested], { tenant, id: "pirate" });
    const before = (await promotions()).length;
    const key = { "idempotency-key": "again" };
    const twice = [{ version: 2 }, { version: 2 }, { version: 2, canary: {} }].map((body) => ask("promote", body, key));
    expect(await Promise.all([ask("promote", { version: 2 }), ask("place", { mode: "spread", replicas: 2 })])).toMatchObject([
      { error: { code: "alias_not_moved", message: expect.stringContaining("still points to version 1") } },
      { error: { code: "not_placed", message: expect.stringContaining("placement of pirate is as it was") } },
    ]);
    await Promise.all(twice);
    // One without a key, one with it that came twice, and another body under that key, which asks for something else.
    expect((await promotions()).length - before).toBe(3);
  });

  test("show and redrive dead letters", async ({ line, nc }) => {
    const seq = await deadLetter(line, nc);
    const shown = await (await line.fetch(`/v1/loraline/dlq/${seq}`)).json();
    expect(shown).toMatchObject({ seq, stream: "RUNS", code: "CONTRACT_VIOLATION", data: "not json" });
    expect((await line.fetch(`/v1/loraline/dlq/${seq}/redrive`, { method: "POST" })).status).toBe(200);
    expect((await line.fetch(`/v1/loraline/dlq/${seq}`)).status).toBe(404);
  });

  test("delete dead letters, which nobody else's key can", async ({ line, nc }) => {
    const seq = await deadLetter(line, nc);
    const stranger = await line.keyFor(`${line.tenant}-other`);
    const headers = { authorization: `Bearer ${stranger}` };
    const remove = (of: object = {}) => line.fetch(`/v1/loraline/dlq/${seq}`, { method: "DELETE", ...of });
    expect((await remove({ headers })).status).toBe(404);
    expect(await (await remove()).json()).toMatchObject({ seq, code: "CONTRACT_VIOLATION" });
    expect((await remove()).status).toBe(404);
    expect((await line.bus.deadLetters.list(line.tenant)).map((letter) => letter.seq)).not.toContain(seq);
  });
});

describe("when the bus is away", () => {
  testWithNats("adapters go on answering, and what needs the bus says so", async ({ tenant }) => {
    await using nats = await spawnNatsServer();
    const nc = await nats.connect({ maxReconnectAttempts: -1, reconnectTimeWait: 100 });
    await using line = await startGateway({ nc, tenant, projector: false });
    const version = versionOf(tenant, "pirate", 1);
    const adapter = adapterOf(tenant, "pirate", [version]);
    await using engine = await startEngine(base, version.engineName);
    await registerEngine(line.bus);
    await putAdapter(line.bus, adapter);
    await putReplica(line.bus, replicaOf("r1", engine.url, [heldBy(adapter, version)]));
    const chat = () => line.openai.chat.completions.create({ model: `${tenant}/pirate`, messages: [{ role: "user", content: "ahoy" }] });
    await expect.poll(() => chat().then(({ model }) => model, String)).toBe(`${tenant}/pirate@1`);
    expect((await fetch(`${line.url}/readyz`)).status).toBe(200);

    await nats.kill();
    expect((await chat()).model).toBe(`${tenant}/pirate@1`);
    expect((await fetch(`${line.url}/healthz`)).status).toBe(200);
    expect((await fetch(`${line.url}/readyz`)).status).toBe(503);
    const listing = await line.fetch("/v1/files");
    expect(await failureOf(listing)).toMatchObject({ status: 503, error: { code: "bus_unavailable" } });
    expect(listing.headers.get("retry-after")).toBe("2");

    await nats.start();
    await expect.poll(async () => (await fetch(`${line.url}/readyz`)).status, { timeout: 60_000 }).toBe(200);
    expect((await line.openai.files.list()).data).toEqual([]);
    await line[Symbol.asyncDispose]();
    await nc.close();
  });
});

describe("shutdown", () => {
  testWithNats("lets an answer end, and aborts one that does not", async ({ nc, tenant }) => {
    const line = await startGateway({ nc, tenant, projector: false, drainMs: 700 });
    await using engine = await startEngine(base);
    await registerEngine(line.bus);
    await putReplica(line.bus, replicaOf("r1", engine.url));
    await expect
      .poll(() => line.openai.chat.completions.create({ model: base, messages: [] }).then(({ model }) => model, String))
      .toBe(base);

    engine.words = Array.from({ length: 40 }, () => "la ");
    const short = await line.openai.chat.completions.create({ model: base, messages: [], stream: true });
    engine.words = Array.from({ length: 10_000 }, () => "la ");
    const endless = await line.openai.chat.completions.create({ model: base, messages: [], stream: true });
    const reading = Promise.all([Array.fromAsync(short), Array.fromAsync(endless).catch(() => "aborted")]);
    const began = performance.now();
    await line[Symbol.asyncDispose]();
    expect(performance.now() - began).toBeLessThan(3000);
    const [whole, aborted] = await reading;
    expect(whole).toHaveLength(41);
    expect(aborted).toBe("aborted");
    await expect.poll(() => engine.requests.at(-1)?.aborted).toBe(true);
    await expect(fetch(`${line.url}/healthz`)).rejects.toThrow("fetch failed");
  });
});
