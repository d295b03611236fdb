/** Chat and completions through the gateway: routing, pinned names, streams, broken engines, readers that leave. */
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { type IncomingMessage, request as httpRequest } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createBus } from "@loraline/bus";
import { type AdapterState, buckets } from "@loraline/contracts";
import { createTelemetry, traceIdOf } from "@loraline/runtime";
import { test as testWithNats } from "@loraline/testkit";
import type { APIError } from "openai";
import { describe, expect } from "vitest";
import {
  adapterOf,
  base,
  chunkOf,
  type Engine,
  type GatewayUnderTest,
  heldBy,
  putAdapter,
  putReplica,
  quietLog,
  registerEngine,
  replicaOf,
  startEngine,
  startGateway,
  versionOf,
} from "../gateway-under-test.ts";

interface Serving {
  line: GatewayUnderTest;
  engine: Engine;
  /** `<tenant>/pirate`, promoted version 2 of two that are proven. */
  alias: string;
  adapter: AdapterState;
  /** LoRA name of version 2. */
  engineName: string;
}

const test = testWithNats
  .extend("spansDir", async ({}, { onCleanup }) => {
    const dir = await mkdtemp(join(tmpdir(), "loraline-spans-"));
    onCleanup(() => rm(dir, { recursive: true, force: true, maxRetries: 5 })); // a span may still be on its way
    return dir;
  })
  .extend("serving", async ({ nc, tenant, spansDir }, { onCleanup }): Promise<Serving> => {
    const owned = new AsyncDisposableStack();
    onCleanup(() => owned.disposeAsync());
    const line = owned.use(await startGateway({ nc, tenant, spansDir, projector: false }));
    const versions = [versionOf(tenant, "pirate", 1), versionOf(tenant, "pirate", 2)];
    const adapter = adapterOf(tenant, "pirate", versions);
    const engine = owned.use(await startEngine(base, ...versions.map(({ engineName }) => engineName)));
    await registerEngine(line.bus);
    await putAdapter(line.bus, adapter);
    const held = versions.map((version) => heldBy(adapter, version));
    await putReplica(line.bus, replicaOf("r1", engine.url, held));
    owned.defer(async () => (await line.bus.bucket(buckets.replicas)).delete("local.r1"));
    const alias = `${tenant}/pirate`;
    await expect.poll(async () => (await line.openai.models.list()).data.map(({ id }) => id)).toContain(alias);
    return { line, engine, alias, adapter, engineName: versions[1]?.engineName ?? "" };
  });

const messages = [{ role: "user" as const, content: "ahoy" }];
const adapterDigest = versionOf("t", "a", 1).digest;

describe("answers", () => {
  test("come from the promoted version, under its pinned name", async ({ serving: { line, engine, alias, engineName } }) => {
    const { data, response } = await line.openai.chat.completions
      .create({ model: alias, messages, max_tokens: 5, logprobs: true })
      .withResponse();
    expect(data.model).toBe(`${alias}@2`);
    expect(data.choices[0]?.message.content).toBe("Arr, matey ☠");
    expect(response.headers.get("x-loraline-version")).toBe("2");
    expect(response.headers.get("x-loraline-replica")).toBe("r1");
    expect(response.headers.get("x-request-id")).toMatch(/^[0-9A-Z]{26}$/);
    expect(engine.requests[0]).toMatchObject({
      path: "/v1/chat/completions",
      body: { model: engineName, messages, max_tokens: 5, logprobs: true },
    });
    expect(engine.requests[0]?.headers).not.toHaveProperty("authorization");

    const completion = await line.openai.completions.create({ model: alias, prompt: "ahoy" });
    expect([completion.model, completion.choices[0]?.text]).toEqual([`${alias}@2`, "Arr, matey ☠"]);
  });

  test("are asked with the system prompt that the version was trained with, unless the conversation has one", async ({
    serving: { line, engine, alias, adapter },
  }) => {
    const versions = adapter.versions.map((version) => ({ ...version, system: `You are pirate ${version.version}.` }));
    await putAdapter(line.bus, { ...adapter, versions });
    const create = (body: object, headers: Record<string, string> = {}) =>
      line.openai.chat.completions.create({ model: alias, messages, ...body }, { headers }).withResponse();
    await expect.poll(async () => (await create({})).response.headers.get("x-loraline-system")).toBe("applied");
    expect(engine.requests.at(-1)?.body).toMatchObject({ messages: [{ role: "system", content: "You are pirate 2." }, ...messages] });
    const own = [{ role: "system" as const, content: "Be brief." }, ...messages];
    expect((await create({ messages: own })).response.headers.has("x-loraline-system")).toBe(false);
    expect(engine.requests.at(-1)?.body).toMatchObject({ messages: own });
    await create({}, { "x-loraline-system": "off" });
    expect(engine.requests.at(-1)?.body).toMatchObject({ messages });
    await create({ model: `${alias}@1` });
    expect(engine.requests.at(-1)?.body).toMatchObject({ messages: [{ content: "You are pirate 1." }, ...messages] });
  });

  test("come from whatever the request names: pinned, ft: form, base", async ({ serving: { line, engine, alias } }) => {
    const asked = async (model: string) => (await line.openai.chat.completions.create({ model, messages })).model;
    expect(await asked(`${alias}@1`)).toBe(`${alias}@1`);
    expect(await asked(`ft:${base}:${line.tenant}:pirate:1`)).toBe(`${alias}@1`);
    expect(await asked(base)).toBe(base);
    expect(engine.requests.map(({ body }) => body["model"])).toEqual([
      expect.stringContaining(".v1."),
      expect.stringContaining(".v1."),
      base,
    ]);
  });

  test("stream as they are made", async ({ serving: { line, engine, alias } }) => {
    const stream = await line.openai.chat.completions.create({ model: alias, messages, stream: true });
    const chunks = await Array.fromAsync(stream);
    expect(chunks.map(({ choices }) => choices[0]?.delta.content)).toEqual(["Arr", ", mat", "ey ☠", ""]);
    expect(new Set(chunks.map(({ model }) => model))).toEqual(new Set([`${alias}@2`]));
    expect(engine.requests[0]?.body).toMatchObject({ stream: true });

    // The first chunk arrives while the engine still holds back the second.
    let go = (): void => {};
    const held = new Promise<void>((resolve) => {
      go = resolve;
    });
    engine.answer = async (body, response) => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      response.write(chunkOf(String(body["model"]), "one"));
      await held;
      response.end(`${chunkOf(String(body["model"]), "two")}data: [DONE]\n\n`);
    };
    const iterator = (await line.openai.chat.completions.create({ model: alias, messages, stream: true }))[Symbol.asyncIterator]();
    expect((await iterator.next()).value.choices[0]?.delta.content).toBe("one");
    go();
    expect((await iterator.next()).value.choices[0]?.delta.content).toBe("two");
    expect((await iterator.next()).done).toBe(true);
  });

  test("carry an engine's own refusal in OpenAI's shape", async ({ serving: { line, alias } }) => {
    await expect(line.openai.chat.completions.create({ model: alias, messages, max_tokens: -1 })).rejects.toMatchObject({
      status: 400,
      type: "invalid_request_error",
      param: "max_tokens",
      code: null,
      message: `400 max_tokens must be at least 1, got -1 for ${alias}@2.`,
    });
  });
});

const post = (line: GatewayUnderTest, path: string, body: object) =>
  line.fetch(`/v1/${path}`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
const errorOf = async (response: Response) => ({ status: response.status, ...((await response.json()) as { error?: object }) });

describe("requests", () => {
  test("reach the engine as they are, also what OpenAI does not know", async ({ serving: { line, engine, alias, engineName } }) => {
    const rest = {
      messages,
      tools: [{ type: "function", function: { name: "sail", parameters: { type: "object", properties: { to: { type: "string" } } } } }],
      tool_choice: { type: "function", function: { name: "sail" } },
      response_format: { type: "json_schema", json_schema: { name: "x", schema: { type: "object" } } },
      structured_outputs: { regex: "a+" },
      guided_choice: ["a", "b"],
      logprobs: true,
      top_logprobs: 5,
      top_k: 3,
      min_p: 0.1,
      repetition_penalty: 1.1,
      chat_template_kwargs: { enable_thinking: false },
      seed: 12345678901234,
      user: "u",
      nested: { a: [1, 2.5, null, true, "ü☠"] },
    };
    engine.answer = (_body, response) => {
      const calls = [{ id: "c", type: "function", function: { name: "sail", arguments: '{"to":"\\"model\\":"}' } }];
      const choices = [
        { index: 0, message: { role: "assistant", content: null, tool_calls: calls, reasoning: "hm" }, logprobs: { content: [] } },
      ];
      response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify({ model: engineName, choices, kv: { x: 1 } }));
    };
    const answer = await (await post(line, "chat/completions", { model: alias, ...rest })).json();
    expect(engine.requests[0]?.body).toEqual({ model: engineName, cache_salt: expect.any(String), ...rest });
    expect(answer).toMatchObject({
      model: `${alias}@2`,
      kv: { x: 1 },
      choices: [
        { message: { tool_calls: [{ function: { arguments: '{"to":"\\"model\\":"}' } }], reasoning: "hm" }, logprobs: { content: [] } },
      ],
    });
  });

  test("for logprobs of the prompt are only for engines that bear them", async ({ serving: { line, engine, alias } }) => {
    const asks: [string, object][] = [
      ["chat/completions", { messages, prompt_logprobs: 1 }],
      ["chat/completions", { messages, prompt_logprobs: 0 }],
      ["completions", { prompt: "x", prompt_logprobs: 1 }],
      ["completions", { prompt: "x", echo: true, logprobs: 1 }],
    ];
    for (const [path, body] of asks) expect((await post(line, path, { model: alias, ...body })).status).toBe(200);
    await registerEngine(line.bus, { promptLogprobs: false });
    await expect.poll(async () => (await post(line, "completions", { model: base, prompt: "x", prompt_logprobs: 1 })).status).toBe(400);
    const before = engine.requests.length;
    for (const [path, body] of asks) {
      expect(await errorOf(await post(line, path, { model: alias, ...body }))).toMatchObject({
        status: 400,
        error: { code: "unsupported" },
      });
    }
    expect(engine.requests.length).toBe(before);
    for (const body of [{ echo: true }, { logprobs: 2 }, { echo: true, logprobs: null }, { prompt_logprobs: null }]) {
      expect((await post(line, "completions", { model: alias, prompt: "x", ...body })).status).toBe(200);
    }
    await registerEngine(line.bus);
  });

  test("for embeddings go to an engine that offers them, and to no other", async ({ serving: { line, engine, alias } }) => {
    for (const model of [base, alias]) {
      expect(await errorOf(await post(line, "embeddings", { model, input: "ahoy" }))).toMatchObject({
        status: 400,
        error: { code: "unsupported_task", param: "model", message: expect.stringContaining("does not offer embeddings") },
      });
    }
    expect(engine.requests).toEqual([]);
    await using embedder = await startEngine("e5");
    await registerEngine(line.bus, { engine: "embedder", base: { name: "e5", revision: "1", digest: adapterDigest }, tasks: ["embed"] });
    await putReplica(line.bus, replicaOf("e1", embedder.url, [], { engine: "embedder", base: "e5" }));
    embedder.answer = (body, response) => {
      const data = [{ object: "embedding", index: 0, embedding: [0.5, -0.25] }];
      const usage = { prompt_tokens: 2, total_tokens: 2 };
      response
        .writeHead(200, { "content-type": "application/json" })
        .end(JSON.stringify({ object: "list", model: body["model"], data, usage }));
    };
    await expect
      .poll(() =>
        line.openai.embeddings
          .create({ model: "e5", input: ["ahoy"], encoding_format: "float" })
          .then(({ data }) => data[0]?.embedding, String),
      )
      .toEqual([0.5, -0.25]);
    expect(embedder.requests.at(-1)).toMatchObject({ path: "/v1/embeddings", body: { model: "e5", input: ["ahoy"] } });
    expect(await errorOf(await post(line, "chat/completions", { model: "e5", messages }))).toMatchObject({
      status: 400,
      error: { code: "unsupported_task" },
    });
    const used = (await (await line.fetch("/v1/loraline/usage")).json()) as { data: object[] };
    expect(used.data).toContainEqual(expect.objectContaining({ model: "e5", promptTokens: expect.any(Number), completionTokens: 0 }));
    await (await line.bus.bucket(buckets.engines)).delete("embedder");
    await (await line.bus.bucket(buckets.replicas)).delete("embedder.e1");
  });

  test("can reach nothing else of the engine, however the path is written", async ({ serving: { line, engine } }) => {
    const { hostname, port } = new URL(line.url);
    /** As it stands: fetch would tidy the path. */
    const ask = (method: string, path: string) =>
      new Promise<number>((resolve, reject) => {
        const headers = { authorization: `Bearer ${line.key}`, "content-type": "application/json" };
        const asking = httpRequest({ hostname, port, path, method, headers }, (response) => {
          response.resume();
          resolve(response.statusCode ?? 0);
        });
        asking.on("error", reject);
        asking.end(method === "POST" ? JSON.stringify({ model: base, lora_name: "x", lora_path: "/etc" }) : undefined);
      });
    const doors = [
      "load_lora_adapter",
      "unload_lora_adapter",
      "adapters",
      "metrics",
      "docs",
      "openapi.json",
      "tokenize",
      "detokenize",
      "pause",
      "sleep",
      "reset_prefix_cache",
      "collective_rpc",
      "server_info",
      "version",
      "health",
      "ping",
      "invocations",
    ];
    const tricks = (door: string) => [
      `/v1/${door}`,
      `/${door}`,
      `//${door}`,
      `/v1//${door}`,
      `//v1/${door}`,
      `/v1/chat/completions/../../${door}`,
      `/v1/chat/completions/%2e%2e/%2e%2e/${door}`,
      `/v1/chat%2fcompletions/..%2f..%2f${door}`,
      `/v1/./${door}`,
      `/v1/%2e/${door}`,
      `/v1/completions/%2E%2E/${door}`,
      `/v1/completions;/${door}`,
      `/v1/completions/${door}`,
      `/v1/completions%00/${door}`,
      `/V1/${door}`,
      `/v1/${door}%2f`,
      `/v1/${door}?x=/v1/completions`,
      `/v1/${door.replaceAll(/[a-z_]/g, (letter) => `%${letter.charCodeAt(0).toString(16)}`)}`,
    ];
    for (const door of doors) {
      for (const path of tricks(door))
        for (const method of ["GET", "POST"])
          expect([path, [400, 404, 405]]).toEqual([path, expect.arrayContaining([await ask(method, path)])]);
    }
    for (const model of ["../../load_lora_adapter", "x/../../y", "http://127.0.0.1/x", "%2e%2e"]) {
      expect((await post(line, "chat/completions", { model, messages })).status).toBe(404);
    }
    expect(engine.requests).toEqual([]);
    // What is reached by an odd spelling of an allowed path is still the allowed path.
    await ask("POST", "/v1/chat/completions?x=/../metrics");
    expect(engine.requests.every(({ path }) => path === "/v1/chat/completions")).toBe(true);
  });
});

describe("models", () => {
  test("are the bases and what of the tenant is proven", async ({ serving: { line, alias, adapter, engine } }) => {
    const ids = async () => (await line.openai.models.list()).data.map(({ id }) => id);
    expect(await ids()).toEqual([base, `${alias}@1`, alias, `${alias}@2`]);
    expect(await line.openai.models.retrieve(`${alias}@2`)).toMatchObject({
      id: `${alias}@2`,
      object: "model",
      owned_by: line.tenant,
      loraline: { base, adapter: "pirate", version: 2, provenReplicas: 1, readyReplicas: 1 },
    });
    expect(await line.openai.models.retrieve(`ft:${base}:${line.tenant}:pirate:1`)).toMatchObject({ id: `${alias}@1` });
    await expect(line.openai.models.retrieve("nobody/nothing")).rejects.toMatchObject({
      status: 404,
      code: "model_not_found",
      param: "model",
    });

    const [first] = adapter.versions;
    if (first === undefined) throw new Error("no version");
    await putReplica(line.bus, replicaOf("r1", engine.url, [heldBy(adapter, first)]));
    await expect.poll(ids).toEqual([base, `${alias}@1`]);
  });

  test("that nobody knows are 404, that nobody has proven are 503 with the reason", async ({
    serving: { line, alias, adapter, engine },
  }) => {
    const chat = (model: string) => line.openai.chat.completions.create({ model, messages });
    for (const model of ["gpt-4o", "nobody/pirate", `${alias}@9`, `ft:other:${line.tenant}:pirate:1`, "pirate"]) {
      await expect(chat(model)).rejects.toMatchObject({
        status: 404,
        code: "model_not_found",
        param: "model",
        type: "invalid_request_error",
      });
    }
    const error = { code: "PROOF_FAILED", message: "agreement 2.1 over 0.3" };
    const held = adapter.versions.map((version) => heldBy(adapter, version, { state: "retrying", error }));
    await putReplica(line.bus, replicaOf("r1", engine.url, held));
    await expect.poll(() => chat(alias).catch((failure: InstanceType<typeof APIError>) => failure.status)).toBe(503);
    const failure = await chat(alias).catch((thrown: InstanceType<typeof APIError>) => thrown);
    expect(failure).toMatchObject({ code: "model_not_ready", message: expect.stringContaining("agreement 2.1 over 0.3") });
    expect((failure as InstanceType<typeof APIError>).headers?.get("retry-after")).toBe("2");
  });

  test("that are refused or not promoted say so", async ({ serving: { line, alias, adapter } }) => {
    const chat = (model: string) => line.openai.chat.completions.create({ model, messages });
    const reason = { code: "GATE", message: "held-out loss is not below the base's" };
    const [first, second] = adapter.versions;
    if (first === undefined || second === undefined) throw new Error("no versions");
    await putAdapter(line.bus, {
      ...adapter,
      versions: [
        { ...first, promote: "manual" },
        { ...second, status: "refused", reason },
      ],
      alias: null,
    });
    await expect.poll(() => chat(`${alias}@2`).catch(String)).toMatch(/404 Version 2 .* is refused: held-out loss/);
    await expect(chat(alias)).rejects.toThrow(/No version .* is promoted. Promote one, or ask for .*@1/);
    expect((await chat(`${alias}@1`)).model).toBe(`${alias}@1`);
  });
});

describe("replicas", () => {
  test("that restarted and forgot the adapter are passed over", async ({ serving: { line, engine, alias, adapter } }) => {
    await using other = await startEngine(base, ...adapter.versions.map(({ engineName }) => engineName));
    engine.models = new Set([base]);
    const held = adapter.versions.map((version) => heldBy(adapter, version));
    await putReplica(line.bus, replicaOf("r2", other.url, held));
    await expect.poll(async () => (await line.openai.models.retrieve(alias)) as unknown).toMatchObject({ loraline: { provenReplicas: 2 } });
    for (let i = 0; i < 8; i++) {
      const { response } = await line.openai.chat.completions.create({ model: `${alias}@${(i % 2) + 1}`, messages }).withResponse();
      expect(response.headers.get("x-loraline-replica")).toBe("r2");
    }
    other.models = new Set([base]);
    await expect(line.openai.chat.completions.create({ model: alias, messages })).rejects.toMatchObject({
      status: 503,
      code: "model_not_ready",
      message: expect.stringContaining("does not exist"),
    });
    expect((await line.openai.chat.completions.create({ model: base, messages })).model).toBe(base);
    await (await line.bus.bucket(buckets.replicas)).delete("local.r2");
  });

  test("that are gone are passed over; when all are, the answer is 503", async ({ serving: { line, engine, alias, adapter } }) => {
    const held = adapter.versions.map((version) => heldBy(adapter, version));
    await using gone = await startEngine();
    await putReplica(line.bus, replicaOf("r0", gone.url, held));
    await gone[Symbol.asyncDispose]();
    await expect.poll(async () => (await line.openai.models.retrieve(alias)) as unknown).toMatchObject({ loraline: { provenReplicas: 2 } });
    for (let i = 0; i < 4; i++) {
      const { response } = await line.openai.chat.completions.create({ model: alias, messages }).withResponse();
      expect(response.headers.get("x-loraline-replica")).toBe("r1");
    }
    await engine[Symbol.asyncDispose]();
    await expect(line.openai.chat.completions.create({ model: alias, messages })).rejects.toMatchObject({
      status: 503,
      message: expect.stringContaining("cannot be reached"),
    });
    await (await line.bus.bucket(buckets.replicas)).delete("local.r0");
  });

  test("that break off before their first byte are passed over, also in a stream whose head was sent", async ({
    serving: { line, engine, alias, adapter },
  }) => {
    const held = adapter.versions.map((version) => heldBy(adapter, version));
    await using other = await startEngine(base, ...adapter.versions.map(({ engineName }) => engineName));
    await putReplica(line.bus, replicaOf("r2", other.url, held));
    await expect.poll(async () => (await line.openai.models.retrieve(alias)) as unknown).toMatchObject({ loraline: { provenReplicas: 2 } });
    // As vLLM: the head of a stream comes at once, the first token later. Whoever is asked first is killed in between.
    let killed = 0;
    const dying = (with_: Engine, rest: Engine): void => {
      with_.answer = (_, response) => {
        killed += 1;
        with_.answer = rest.answer = undefined;
        response.writeHead(200, { "content-type": "text/event-stream" });
        response.flushHeaders();
        setTimeout(() => response.destroy(), 50);
      };
    };
    dying(engine, other);
    dying(other, engine);
    const chunks = await Array.fromAsync(await line.openai.chat.completions.create({ model: alias, messages, stream: true }));
    expect(chunks.map(({ choices }) => choices[0]?.delta.content ?? "").join("")).toBe("Arr, matey ☠");
    expect(killed).toBe(1);
    expect(engine.requests.length + other.requests.length).toBe(2);
    await (await line.bus.bucket(buckets.replicas)).delete("local.r2");
  });

  test("whose inner process died are passed over, and other failures are not", async ({ serving: { line, engine, alias, adapter } }) => {
    await using other = await startEngine(base, ...adapter.versions.map(({ engineName }) => engineName));
    await putReplica(
      line.bus,
      replicaOf(
        "r2",
        other.url,
        adapter.versions.map((version) => heldBy(adapter, version)),
      ),
    );
    await expect.poll(async () => (await line.openai.models.retrieve(alias)) as unknown).toMatchObject({ loraline: { provenReplicas: 2 } });
    const failing =
      (message: string): Engine["answer"] =>
      (_, response) =>
        void response
          .writeHead(500, { "content-type": "application/json" })
          .end(JSON.stringify({ error: { message, type: "InternalServerError", param: null, code: 500 } }));
    // As vLLM 0.32 answers what was in flight when its EngineCore was killed.
    engine.answer = failing("EngineCore encountered an issue. See stack trace (above) for the root cause.");
    for (let i = 0; i < 4; i++) {
      const { response } = await line.openai.chat.completions.create({ model: `${alias}@${(i % 2) + 1}`, messages }).withResponse();
      expect(response.headers.get("x-loraline-replica")).toBe("r2");
    }
    engine.answer = other.answer = failing("something else");
    const before = engine.requests.length + other.requests.length;
    await expect(line.openai.chat.completions.create({ model: alias, messages })).rejects.toMatchObject({ status: 500 });
    expect(engine.requests.length + other.requests.length).toBe(before + 1);
    await (await line.bus.bucket(buckets.replicas)).delete("local.r2");
  });

  test("that vanished are asked last from then on, until they are heard of again", async ({
    serving: { line, engine, alias, adapter },
  }) => {
    const held = adapter.versions.map((version) => heldBy(adapter, version));
    await using gone = await startEngine();
    // The gateway's own name for each: only one of ten is its favourite, whichever that is.
    const names = Array.from({ length: 10 }, (_, i) => `gone${i}`);
    for (const name of names) await putReplica(line.bus, replicaOf(name, gone.url, held));
    await gone[Symbol.asyncDispose]();
    await expect
      .poll(async () => (await line.openai.models.retrieve(alias)) as unknown)
      .toMatchObject({ loraline: { provenReplicas: 11 } });
    const tried = (): number => line.logged.filter(({ msg }) => String(msg).startsWith("trying elsewhere")).length;
    const ask = () => line.openai.chat.completions.create({ model: alias, messages });
    // Three at once are tried; those that were not there come last the next time.
    await expect
      .poll(() =>
        ask().then(
          () => true,
          () => false,
        ),
      )
      .toBe(true);
    const before = tried();
    for (let i = 0; i < 5; i++) await ask();
    expect(tried()).toBe(before);
    expect(engine.requests.length).toBeGreaterThan(5);
    for (const name of names) await (await line.bus.bucket(buckets.replicas)).delete(`local.${name}`);
  });

  test("are asked with the engines' key, and never with the caller's; one that asks for another is passed over", async ({
    nc,
    tenant,
    serving: { engine, alias, adapter },
  }) => {
    await using line = await startGateway({ nc, tenant, projector: false, engineKey: "between-us" });
    await expect.poll(async () => (await line.openai.models.list()).data.map(({ id }) => id)).toContain(alias);
    await line.openai.chat.completions.create({ model: alias, messages });
    expect(engine.requests.at(-1)?.headers.authorization).toBe("Bearer between-us");
    expect(JSON.stringify(engine.requests.at(-1)?.headers)).not.toContain(line.key);

    engine.answer = (_, response) => void response.writeHead(401, { "content-type": "application/json" }).end('{"error":"Unauthorized"}');
    await expect(line.openai.chat.completions.create({ model: alias, messages })).rejects.toMatchObject({
      status: 503,
      message: expect.stringMatching(/answered 401/),
    });
    await using other = await startEngine(base, ...adapter.versions.map(({ engineName }) => engineName));
    await putReplica(
      line.bus,
      replicaOf(
        "r2",
        other.url,
        adapter.versions.map((version) => heldBy(adapter, version)),
      ),
    );
    await expect
      .poll(() =>
        line.openai.chat.completions.create({ model: alias, messages }).then(
          () => "answered",
          () => "refused",
        ),
      )
      .toBe("answered");
    await (await line.bus.bucket(buckets.replicas)).delete("local.r2");
  });

  test("share what comes at once, the favourite a little more", async ({ serving: { line, engine, alias, adapter } }) => {
    await using other = await startEngine(base, ...adapter.versions.map(({ engineName }) => engineName));
    await putReplica(
      line.bus,
      replicaOf(
        "r2",
        other.url,
        adapter.versions.map((version) => heldBy(adapter, version)),
      ),
    );
    await expect.poll(async () => (await line.openai.models.retrieve(alias)) as unknown).toMatchObject({ loraline: { provenReplicas: 2 } });
    const allAsked = Promise.withResolvers<void>();
    engine.answer = other.answer = async (body, response) => {
      if (engine.requests.length + other.requests.length === 10) allAsked.resolve();
      await allAsked.promise; // nobody becomes free meanwhile
      response.writeHead(200, { "content-type": "text/event-stream" });
      response.end(`${chunkOf(String(body["model"]), "Arr")}data: [DONE]\n\n`);
    };
    const chats = Array.from({ length: 10 }, () => line.openai.chat.completions.create({ model: alias, messages, stream: true }));
    await Promise.all(chats.map(async (chat) => Array.fromAsync(await chat)));
    // Its favourite takes a quarter more than its share at most.
    expect([engine.requests.length, other.requests.length].toSorted((a, b) => a - b)).toEqual([3, 7]);
    await (await line.bus.bucket(buckets.replicas)).delete("local.r2");
  });

  test("that break off while they answer are told to the reader", async ({ serving: { line, engine, alias } }) => {
    engine.answer = (body, response) => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      response.write(chunkOf(String(body["model"]), "Arr"), () => response.destroy());
    };
    const words: unknown[] = [];
    const reading = (async () => {
      for await (const chunk of await line.openai.chat.completions.create({ model: alias, messages, stream: true })) {
        words.push(chunk.choices[0]?.delta.content);
      }
    })();
    await expect(reading).rejects.toThrow(/broke off/);
    expect(words).toEqual(["Arr"]);
    expect(engine.requests).toHaveLength(1); // never again after the first byte
  });
});

describe("readers", () => {
  test("that leave stop the engine, before and while it answers", async ({ serving: { line, engine, alias } }) => {
    const leaving = new AbortController();
    const stream = await line.openai.chat.completions.create({ model: alias, messages, stream: true }, { signal: leaving.signal });
    engine.words = Array.from({ length: 10_000 }, () => "la ");
    const endless = await line.openai.chat.completions.create({ model: alias, messages, stream: true }, { signal: leaving.signal });
    await Array.fromAsync(stream);
    await endless[Symbol.asyncIterator]().next();
    leaving.abort();
    await expect.poll(() => engine.requests[1]?.aborted).toBe(true);

    engine.answer = () => {}; // never answers
    const waiting = new AbortController();
    const asked = line.openai.chat.completions.create({ model: alias, messages }, { signal: waiting.signal });
    await expect.poll(() => engine.requests.length).toBe(3);
    waiting.abort();
    await expect(asked).rejects.toThrow(/abort/i);
    await expect.poll(() => engine.requests[2]?.aborted).toBe(true);
    expect(line.logged.filter(({ level }) => Number(level) >= 50)).toEqual([]);
  });

  test("that leave before an engine is asked cost nothing, and hold nothing", async ({ nc, nats, tenant, serving: { engine, alias } }) => {
    await using owned = new AsyncDisposableStack();
    const other = await nats.connect();
    owned.defer(() => other.close());
    const bus = createBus({ nc: other, log: quietLog, telemetry: createTelemetry({ service: "test" }), source: "test" });
    let asking = 0;
    const gate = Promise.withResolvers<void>();
    const bucket: typeof bus.bucket = async (def) => {
      const opened = await bus.bucket(def);
      if (def.name !== buckets.budgets.name) return opened;
      const change: typeof opened.change = async (...args) => {
        asking += 1;
        await gate.promise;
        return opened.change(...args);
      };
      return { ...opened, change };
    };
    await (await bus.bucket(buckets.limits)).put(tenant, { concurrency: 1, by: "test", at: new Date().toISOString() });
    const line = owned.use(await startGateway({ nc, tenant, projector: false, bus: { ...bus, bucket } }));
    owned.defer(async () => (await bus.bucket(buckets.limits)).delete(tenant));

    const { hostname, port } = new URL(line.url);
    const headers = { authorization: `Bearer ${line.key}`, "content-type": "application/json" };
    const leaving = httpRequest({ hostname, port, path: "/v1/chat/completions", method: "POST", headers });
    leaving.on("error", () => {});
    leaving.end(JSON.stringify({ model: alias, messages, stream: true }));
    await expect.poll(() => asking).toBe(1);
    leaving.destroy();
    await new Promise((resolve) => setTimeout(resolve, 200));
    gate.resolve();
    // The only slot is free again.
    await expect.poll(() => line.openai.chat.completions.create({ model: alias, messages }).then(({ model }) => model)).toBe(`${alias}@2`);
    expect(engine.requests.map(({ body }) => body["stream"] ?? false)).toEqual([false]);
  });

  test("that are slow slow the engine down, instead of filling the gateway's memory", async ({ serving: { line, engine, alias } }) => {
    const total = 64 * 1024 * 1024;
    const piece = `: ${"x".repeat(64 * 1024 - 4)}\n\n`;
    let ended = false;
    engine.answer = async (body, response, request) => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      response.write(chunkOf(String(body["model"]), "Arr"));
      const left = once(response, "close");
      while (request.bytesSent < total && !response.destroyed) {
        request.bytesSent += piece.length;
        if (!response.write(piece)) await Promise.race([once(response, "drain"), left]);
      }
      ended = !response.destroyed;
      response.end("data: [DONE]\n\n");
    };
    const { hostname, port } = new URL(line.url);
    const reading = httpRequest({
      hostname,
      port,
      path: "/v1/chat/completions",
      method: "POST",
      headers: { authorization: `Bearer ${line.key}`, "content-type": "application/json" },
    });
    reading.end(JSON.stringify({ model: alias, messages, stream: true }));
    const response = await new Promise<IncomingMessage>((resolve) => {
      reading.once("response", resolve);
    });
    // Nobody reads: what is under way is what sockets and buffers hold.
    await new Promise((resolve) => setTimeout(resolve, 1000));
    const stuckAt = engine.requests[0]?.bytesSent ?? 0;
    expect(ended).toBe(false);
    expect(stuckAt).toBeLessThan(total / 2);
    await new Promise((resolve) => setTimeout(resolve, 200));
    expect(engine.requests[0]?.bytesSent).toBe(stuckAt);
    let bytes = 0;
    for await (const part of response) bytes += (part as Buffer).length;
    expect(bytes).toBeGreaterThanOrEqual(total);
    expect(ended).toBe(true);
  });
});

describe("traces", () => {
  test("the first request on a newly served version ends the upload's trace, later ones link to it", async ({ serving }) => {
    const { line, engine, alias, adapter } = serving;
    const trace = "00-55555555555555555555555555555555-6666666666666666-01";
    await putAdapter(line.bus, { ...adapter, versions: adapter.versions.map((version) => ({ ...version, trace })) });
    await expect
      .poll(async () => {
        const response = await line.fetch("/v1/loraline/adapters/pirate");
        return ((await response.json()) as { adapter: AdapterState }).adapter.versions[1]?.trace;
      })
      .toBe(trace);
    await new Promise((resolve) => setTimeout(resolve, 100));
    const ask = async (headers: Record<string, string> = {}) => {
      const { response } = await line.openai.chat.completions.create({ model: alias, messages }, { headers }).withResponse();
      return traceIdOf(response.headers.get("traceparent"));
    };
    expect(await ask()).toBe("5".repeat(32));
    expect(traceIdOf(String(engine.requests[0]?.headers["traceparent"]))).toBe("5".repeat(32));
    const second = (await ask()) ?? "";
    expect(second).not.toBe("5".repeat(32));
    await expect.poll(() => line.spans(second)).toMatchObject([{ links: [{ traceId: "5".repeat(32) }] }]);
    expect(await ask({ traceparent: "00-77777777777777777777777777777777-8888888888888888-01" })).toBe("7".repeat(32));
    await expect
      .poll(() => line.spans("5".repeat(32)))
      .toMatchObject([
        {
          name: "POST /v1/chat/completions",
          parentSpanId: "6666666666666666",
          attributes: { "http.response.status_code": 200, "gen_ai.response.model": `${alias}@2`, "loraline.replica": "r1" },
        },
      ]);
  });

  test("of a tenant that sends a `traceparent` with each request are as many as it is allowed; another's are its own", async ({
    nc,
    tenant,
  }) => {
    await using line = await startGateway({ nc, tenant, tracesPerMinute: 1, chatTraceShare: 0 });
    const statuses = async (key: string): Promise<boolean[]> => {
      const joined: boolean[] = [];
      for (let n = 1; n <= 4; n++) {
        const traceparent = `00-${String(n).repeat(32)}-8888888888888888-01`;
        const chat = n % 2 === 0;
        const answer = await fetch(`${line.url}/v1/${chat ? "chat/completions" : "models"}`, {
          headers: { authorization: `Bearer ${key}`, traceparent, "content-type": "application/json" },
          ...(chat ? { method: "POST", body: JSON.stringify({ model: "nothing", messages }) } : {}),
        });
        await answer.text();
        joined.push(traceIdOf(answer.headers.get("traceparent")) === String(n).repeat(32));
      }
      return joined;
    };
    // A new minute may begin meanwhile.
    const sums = (await Promise.all([statuses(line.key), statuses(await line.keyFor(`${tenant}-other`))])).map(
      (joined) => joined.filter(Boolean).length,
    );
    for (const sum of sums) expect([1, 2]).toContain(sum);
    const work = await fetch(`${line.url}/v1/files`, {
      method: "POST",
      headers: { authorization: `Bearer ${line.key}`, traceparent: `00-${"9".repeat(32)}-8888888888888888-01` },
    });
    expect(traceIdOf(work.headers.get("traceparent"))).toBe("9".repeat(32));
  });
});
