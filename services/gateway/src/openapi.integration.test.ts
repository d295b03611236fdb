/** The reference of the HTTP API against the gateway itself: its routes, their scopes, and what it really answers. */
import { httpRoutes, type HttpRoute, openApi, version } from "@loraline/contracts";
import { test as testWithNats } from "@loraline/testkit";
import { Ajv2020, type ValidateFunction } from "ajv/dist/2020.js";
import addFormats from "ajv-formats";
import { expect } from "vitest";
import {
  adapterOf,
  type GatewayUnderTest,
  heldBy,
  playIngested,
  playTokenized,
  playTrained,
  putAdapter,
  putReplica,
  registerEngine,
  replicaOf,
  startEngine,
  startGateway,
  versionOf,
} from "./gateway-under-test.ts";

const test = testWithNats.extend("line", async ({ nc, tenant }, { onCleanup }): Promise<GatewayUnderTest> => {
  const line = await startGateway({ nc, tenant });
  onCleanup(() => line[Symbol.asyncDispose]());
  return line;
});

type Json = Record<string, unknown>;
interface Operation {
  responses: Record<string, { $ref?: string; content?: Record<string, { schema: Json }> }>;
}
interface Document {
  paths: Record<string, Record<string, Operation>>;
  components: { schemas: Record<string, Json>; responses: Record<string, Operation["responses"][string]> };
}
const routes: readonly HttpRoute[] = Object.values(httpRoutes);

/** The gateway writes `:id` and `*` where the table writes `{file_id}`. */
const plain = (path: string): string => path.replaceAll(/:\w+|\*|\{\w+\}/g, "{}");

test("every route of the gateway is in the table of routes with its scopes, and the other way round", async ({ line }) => {
  const registered = line.routes
    .filter(({ method }) => method !== "HEAD")
    .map(({ method, url, scope }) => `${method} ${plain(url)} ${scope.join()}`);
  expect(registered.toSorted()).toEqual(routes.map(({ method, path, scopes }) => `${method} ${plain(path)} ${scopes.join()}`).toSorted());
});

test("the gateway serves the document to anybody, with its own version", async ({ line }) => {
  const response = await fetch(`${line.url}/v1/loraline/openapi.json`);
  expect(response.headers.get("content-type")).toMatch(/^application\/json/);
  const document = (await response.json()) as Json;
  expect(document).toEqual(openApi());
  expect(document).toMatchObject({ openapi: "3.1.0", info: { version } });
  expect(await (await fetch(`${line.url}/healthz`)).json()).toEqual({ status: "ok", version });
});

/** What is not loose on purpose has no field that is not described. */
function closed(schema: unknown): unknown {
  if (Array.isArray(schema)) return schema.map(closed);
  if (typeof schema !== "object" || schema === null) return schema;
  const copy = Object.fromEntries(Object.entries(schema).map(([key, value]) => [key, closed(value)]));
  return "properties" in copy && copy["type"] === "object" && !("additionalProperties" in copy)
    ? { ...copy, additionalProperties: false }
    : copy;
}

/** Finds the operation of a request, and the schema of the answer that came. */
function createChecker(document: Document) {
  const ajv = new Ajv2020({ strict: false, allErrors: true });
  (addFormats as unknown as (ajv: Ajv2020) => void)(ajv);
  ajv.addSchema({ $id: "api", components: closed(document.components) as Json });
  const compiled = new Map<string, ValidateFunction>();
  return (method: string, path: string, status: number, type: string, value: unknown): void => {
    const parts = path.split("?")[0]!.split("/");
    const fits = (template: string) => {
      const wanted = template.split("/");
      return wanted.length === parts.length && wanted.every((part, at) => part.startsWith("{") || part === parts[at]);
    };
    const candidates = Object.keys(document.paths).filter(
      (template) => fits(template) && method.toLowerCase() in document.paths[template]!,
    );
    const template = candidates.toSorted((a, b) => a.split("{").length - b.split("{").length)[0];
    const described = document.paths[template ?? ""]?.[method.toLowerCase()]?.responses[status];
    expect(described, `${method} ${path} answered ${status}, which is not described`).toBeDefined();
    const response = described?.$ref === undefined ? described : document.components.responses[described.$ref.split("/").at(-1)!];
    const schema = response?.content?.[type]?.schema as { $ref: string } | undefined;
    expect(schema, `${method} ${path} answered ${type}, which is not described`).toBeDefined();
    const ref = `api${schema!.$ref}`;
    const validate = compiled.get(ref) ?? ajv.compile({ $ref: ref });
    compiled.set(ref, validate);
    expect(
      validate(value),
      `${method} ${path} ${status}: ${JSON.stringify(validate.errors, null, 1)} of ${JSON.stringify(value, null, 1)}`,
    ).toBe(true);
  };
}

test("what the gateway answers is what the document says, field by field", async ({ line }) => {
  const document = (await (await fetch(`${line.url}/v1/loraline/openapi.json`)).json()) as Document;
  const check = createChecker(document);
  const ask = async <T = Json>(method: string, path: string, body?: unknown, headers: Record<string, string> = {}): Promise<T> => {
    const form = body instanceof FormData;
    const response = await line.fetch(path, {
      method,
      ...(body === undefined ? {} : { body: form ? body : JSON.stringify(body) }),
      headers: { ...(body === undefined || form ? {} : { "content-type": "application/json" }), ...headers },
    });
    const type = (response.headers.get("content-type") ?? "").split(";")[0]!;
    const value = (await response.json()) as T;
    check(method, path, response.status, type, value);
    return value;
  };

  // A dataset, by a part that says itself that it is JSON, as clients made from the document send it.
  const boundary = "loraline";
  const raw = [
    `--${boundary}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n`,
    `--${boundary}\r\ncontent-disposition: form-data; name="mapping"\r\ncontent-type: application/json\r\n\r\n{"format":"prompt-completion"}\r\n`,
    `--${boundary}\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{"prompt":"a","completion":"b"}\n\r\n--${boundary}--\r\n`,
  ].join("");
  const uploaded = await line.fetch("/v1/files", {
    method: "POST",
    body: raw,
    headers: { "content-type": `multipart/form-data; boundary=${boundary}` },
  });
  const file = (await uploaded.json()) as { id: string };
  check("POST", "/v1/files", uploaded.status, "application/json", file);
  const datasetId = file.id.slice("file-".length);
  expect(await ask("GET", `/v1/loraline/datasets/${datasetId}`)).toMatchObject({ mapping: { format: "prompt-completion" } });
  await playIngested(line.bus, line.tenant, datasetId);
  await ask("GET", "/v1/files?limit=1");
  await ask("GET", `/v1/files/${file.id}`);
  await ask("GET", "/v1/files/file-nope");
  await ask("GET", "/v1/loraline/datasets");
  await ask("POST", "/v1/loraline/datasets/import", { url: "https://example.org/a.jsonl" });
  await ask("POST", "/v1/loraline/datasets/import", {});

  // A run.
  await ask("POST", "/v1/fine_tuning/jobs", { model: "x", training_file: file.id });
  await registerEngine(line.bus);
  const engine = await startEngine();
  await using _engine = engine;
  const state = adapterOf(line.tenant, "pirate", [versionOf(line.tenant, "pirate", 1)]);
  const [version1] = state.versions;
  engine.models.add(version1!.engineName);
  await putAdapter(line.bus, state);
  await putReplica(line.bus, replicaOf("r1", engine.url, [heldBy(state, version1!)]));
  await expect.poll(async () => (await line.openai.models.list()).data.map(({ id }) => id)).toContain(`${line.tenant}/pirate`);
  const { data: models } = await ask<{ data: { id: string }[] }>("GET", "/v1/models");
  const job = await ask<{ id: string }>("POST", "/v1/fine_tuning/jobs", {
    model: models[0]!.id,
    training_file: file.id,
    suffix: "pirate",
    metadata: { who: "me" },
  });
  const runId = job.id.slice("ftjob-".length);
  await playTokenized(line.bus, line.tenant, runId);
  await playTrained(line.bus, line.tenant, runId);
  await expect.poll(async () => (await ask<{ phase: string }>("GET", `/v1/loraline/runs/${runId}`)).phase).toBe("trained");
  await ask("GET", `/v1/fine_tuning/jobs/${job.id}`);
  await ask("GET", "/v1/fine_tuning/jobs");
  await ask("GET", `/v1/fine_tuning/jobs/${job.id}/events`);
  await ask("GET", `/v1/fine_tuning/jobs/${job.id}/checkpoints`);
  await ask("GET", "/v1/loraline/runs");
  await ask("POST", `/v1/fine_tuning/jobs/${job.id}/cancel`);

  // An adapter.
  const model = `${line.tenant}/pirate`;
  await ask("GET", `/v1/models/${encodeURIComponent(model)}`);
  await ask("GET", "/v1/loraline/adapters");
  await ask("GET", "/v1/loraline/adapters/pirate");
  await ask("GET", "/v1/loraline/adapters/nope");
  await ask("GET", "/v1/loraline/engines");
  await ask("POST", "/v1/loraline/adapters/pirate/promote", { version: 1 });
  await ask("POST", "/v1/loraline/adapters/pirate/promote", { version: 9 });
  await ask("POST", "/v1/loraline/adapters", { base: "x", name: "y" });
  await ask("POST", "/v1/loraline/adapters/pirate/keep", { keep: "some" });
  await ask("DELETE", `/v1/models/${encodeURIComponent(`${model}@9`)}`);
  await ask("DELETE", `/v1/models/${encodeURIComponent(model)}`);

  // Its answers, whole and as a stream.
  const messages = [{ role: "user", content: "Ahoy?" }];
  await ask("POST", "/v1/chat/completions", { model, messages });
  await ask("POST", "/v1/completions", { model, prompt: "Ahoy" });
  await ask("POST", "/v1/chat/completions", { model: "nope", messages });
  const streamed = await line.fetch("/v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ model, messages, stream: true }),
  });
  const data = (await streamed.text()).split("\n").flatMap((text) => (text.startsWith("data: ") ? [text.slice("data: ".length)] : []));
  expect(data.at(-1)).toBe("[DONE]");
  expect(data.length).toBeGreaterThan(3);
  for (const chunk of data.slice(0, -1)) check("POST", "/v1/chat/completions", streamed.status, "text/event-stream", JSON.parse(chunk));

  // What admins do.
  const { id } = await ask<{ id: string }>("POST", "/v1/loraline/keys", { name: "ci", scopes: ["infer"] });
  await ask("GET", "/v1/loraline/keys");
  await ask("DELETE", `/v1/loraline/keys/${id}`);
  await ask("PUT", "/v1/loraline/limits", { requests_per_minute: 1000 });
  await ask("PUT", "/v1/loraline/limits/pirate", { concurrency: 2 });
  await expect.poll(async () => (await ask<{ data: unknown[] }>("GET", "/v1/loraline/limits")).data.length).toBe(2);
  await ask("DELETE", "/v1/loraline/limits/pirate");
  await ask("DELETE", "/v1/loraline/limits");
  await ask("GET", "/v1/loraline/usage");
  await ask("GET", "/v1/loraline/usage?from=yesterday");
  await ask("GET", "/v1/loraline/dlq");
  await ask("GET", "/v1/models", undefined, { authorization: "Bearer wrong" });
  await ask("GET", "/readyz");
  await ask("DELETE", `/v1/files/${file.id}`);
});
