/** One tenant tries every route there is on what belongs to another. A new route is tried too, or fails here until it says how. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { buckets, consumers, events } from "@loraline/contracts";
import { traceIdOf } from "@loraline/runtime";
import { test as testWithNats } from "@loraline/testkit";
import { toFile } from "openai";
import { expect } from "vitest";
import {
  adapterOf,
  base,
  type Engine,
  type GatewayUnderTest,
  heldBy,
  playIngested,
  playTrained,
  putAdapter,
  putReplica,
  registerEngine,
  replicaOf,
  startEngine,
  startGateway,
  versionOf,
} from "../gateway-under-test.ts";
import { datasetIdOf, runIdOf } from "../openai-ids.ts";

interface Owner {
  line: GatewayUnderTest;
  engine: Engine;
  file: string;
  job: string;
  runId: string;
  letter: number;
  keyId: string;
  engineName: string;
  /** Digest of an object in the owner's store. */
  stored: string;
  /** Id of an upload that is open. */
  upload: string;
  /** Id of a response that is kept. */
  response: string;
  /** traceparent of the owner's upload and run. */
  trace: string;
}

const json = { "content-type": "application/json" };

const test = testWithNats.extend("owner", async ({ nc, tenant }, { onCleanup }): Promise<Owner> => {
  const owned = new AsyncDisposableStack();
  onCleanup(() => owned.disposeAsync());
  const spansDir = await mkdtemp(join(tmpdir(), "loraline-spans-"));
  owned.defer(() => rm(spansDir, { recursive: true, force: true, maxRetries: 5 }));
  const line = owned.use(await startGateway({ nc, tenant, spansDir }));
  await registerEngine(line.bus);
  const rows = Buffer.from(`{"prompt":"ahoy ${tenant}","completion":"Arr"}\n`.repeat(20));
  const file = (await line.openai.files.create({ file: await toFile(rows, `${tenant}.jsonl`), purpose: "fine-tune" })).id;
  await playIngested(line.bus, tenant, datasetIdOf(file) ?? "");
  const job = (await line.openai.fineTuning.jobs.create({ model: base, training_file: file })).id;
  const runId = runIdOf(job) ?? "";
  await playTrained(line.bus, tenant, runId);
  const version = versionOf(tenant, "pirate", 1);
  const adapter = adapterOf(tenant, "pirate", [version]);
  const engine = owned.use(await startEngine(base, version.engineName));
  await putAdapter(line.bus, adapter);
  await putReplica(line.bus, replicaOf("r1", engine.url, [heldBy(adapter, version)]));
  owned.defer(async () => (await line.bus.bucket(buckets.replicas)).delete("local.r1"));
  await expect.poll(async () => (await line.openai.models.list()).data.length).toBe(3);
  await line.openai.chat.completions.create({ model: `${tenant}/pirate`, messages: [] });
  const upload = (await line.openai.uploads.create({ bytes: 9, filename: "x.jsonl", mime_type: "x", purpose: "fine-tune" })).id;
  const response = (await line.openai.responses.create({ model: `${tenant}/pirate`, input: "ahoy" })).id;
  await line.fetch("/v1/loraline/limits/pirate", { method: "PUT", headers: json, body: '{"requests_per_minute":1000}' });
  nc.publish(`loraline.${tenant}.run.01JD000000000000000000000C.requested.v1`, "not json");
  await expect.poll(async () => (await line.bus.deadLetters.list(tenant)).length).toBeGreaterThan(0);
  const letter = (await line.bus.deadLetters.list(tenant))[0]?.seq ?? 0;
  await expect
    .poll(async () => ((await (await line.fetch("/v1/loraline/keys")).json()) as { data: { id: string }[] }).data)
    .toHaveLength(1);
  const keys = ((await (await line.fetch("/v1/loraline/keys")).json()) as { data: { id: string }[] }).data;
  await expect.poll(async () => (await line.openai.fineTuning.jobs.retrieve(job)).status).toBe("running");
  const stored = (await line.objects.put(tenant, "adapter", Readable.from([Buffer.from("{}")]))).digest;
  const trace = (await line.bus.last(events.runRequested, { tenant, id: runId }))?.trace ?? "";
  return {
    line,
    engine,
    file,
    job,
    runId,
    letter,
    keyId: keys[0]?.id ?? "",
    engineName: version.engineName,
    stored,
    upload,
    response,
    trace,
  };
});

/** Bodies that name what is the owner's, for routes that name it nowhere else. */
const bodies = ({
  line: { tenant },
  file,
  engineName,
  stored,
  response,
}: Owner): Record<string, { body: object | undefined; status: number }[]> => {
  const models = [`${tenant}/pirate`, `${tenant}/pirate@1`, `ft:${base}:${tenant}:pirate:1`, engineName];
  return {
    "POST /v1/chat/completions": models.map((model) => ({ body: { model, messages: [] }, status: 404 })),
    "POST /v1/completions": models.map((model) => ({ body: { model, prompt: "x" }, status: 404 })),
    "POST /v1/embeddings": models.map((model) => ({ body: { model, input: "x" }, status: 404 })),
    "POST /v1/responses": [
      ...models.map((model) => ({ body: { model, input: "x" }, status: 404 })),
      { body: { model: base, input: "x", previous_response_id: response }, status: 400 },
    ],
    "POST /v1/moderations": [{ body: { input: "x" }, status: 400 }],
    "POST /v1/fine_tuning/jobs": [
      { body: { model: base, training_file: file }, status: 400 },
      { body: { model: `${tenant}/pirate`, training_file: file }, status: 400 },
    ],
    "POST /v1/uploads": [{ body: { bytes: 1, filename: "x", mime_type: "x", purpose: "fine-tune", tenant }, status: 400 }],
    "POST /v1/uploads/:upload_id/complete": [{ body: { part_ids: ["x"] }, status: 404 }],
    "POST /v1/loraline/datasets/import": [{ body: { file }, status: 400 }],
    "POST /v1/loraline/adapters": [{ body: { base, name: "x", from: { object: stored } }, status: 400 }],
    "POST /v1/loraline/keys": [{ body: { name: "x", tenant }, status: 400 }],
    "PUT /v1/loraline/limits": [{ body: { requests_per_minute: 1 }, status: 200 }],
    "PUT /v1/loraline/limits/:adapter": [{ body: { requests_per_minute: 1 }, status: 404 }],
    "POST /v1/loraline/adapters/:adapter/promote": [{ body: { version: 1 }, status: 404 }],
    "POST /v1/loraline/session": [{ body: { api_key: "x" }, status: 401 }],
    "DELETE /v1/loraline/session": [{ body: undefined, status: 200 }],
    "POST /v1/loraline/session/links": [{ body: undefined, status: 200 }],
    "GET /v1/loraline/live": [{ body: undefined, status: 400 }],
    "DELETE /v1/loraline/tenants/:tenant": [{ body: undefined, status: 400 }],
    "POST /v1/loraline/adapters/:adapter/place": [{ body: { mode: "all" }, status: 404 }],
  };
};
/** Made by the other tenant a moment before, in its own name. */
const ownThings = new Set(["DELETE /v1/loraline/limits"]);
/** Takes a form, not names: what is uploaded belongs to whoever uploads it. */
const uploads = new Set(["POST /v1/files"]);

test("no route shows or changes what is another tenant's", async ({ owner }) => {
  const { line, engine, file, job, runId, letter, keyId } = owner;
  const { tenant } = line;
  const otherKey = await line.keyFor(`${tenant.slice(2)}-other`);
  const ask = async (method: string, path: string, body?: object) => {
    const response = await fetch(line.url + path, {
      method,
      headers: { authorization: `Bearer ${otherKey}`, ...(body === undefined ? {} : json) },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    return { status: response.status, text: await response.text() };
  };
  const parameters = (url: string): string[] => {
    const ids = url.startsWith("/v1/files")
      ? [file]
      : url.startsWith("/v1/fine_tuning")
        ? [job]
        : url.includes("/keys/")
          ? [keyId]
          : [file, datasetIdOf(file) ?? ""];
    const values: Record<string, string[]> = {
      ":id": ids,
      ":runId": [runId],
      ":seq": [String(letter)],
      ":adapter": ["pirate"],
      ":version": ["1"],
      ":digest": [owner.stored],
      ":upload_id": [owner.upload],
      ":response_id": [owner.response],
      ":file": ["adapter_model.safetensors"],
      ":tenant": [tenant],
      "*": [`${tenant}/pirate`, `${tenant}%2Fpirate@1`],
    };
    return Object.entries(values).reduce(
      (urls, [name, known]) => urls.flatMap((one) => (one.includes(name) ? known.map((value) => one.replace(name, value)) : [one])),
      [url],
    );
  };
  const asked = engine.requests.length;
  const told = bodies(owner);
  for (const { method, url } of line.routes.filter((route) => route.method !== "HEAD" && route.url.startsWith("/v1/"))) {
    const route = `${method} ${url}`;
    if (uploads.has(route)) continue;
    const names = /:|\*/.test(url);
    const attempts = told[route] ?? [{ body: undefined, status: ownThings.has(route) || !names ? 200 : 404 }];
    // Without a name in the path, a route that changes things must say above what it could be given.
    if (method !== "GET" && !names && !ownThings.has(route)) expect(told, `${route}: say how it is tried`).toHaveProperty([route]);
    for (const path of parameters(url)) {
      expect(path, `${route}: say what stands for its parameters`).not.toMatch(/:(?!\d+$)[a-z]+(\/|$)/i);
      for (const { body, status } of attempts) {
        const answer = await ask(method, path, body);
        expect([route, answer.status, answer.text]).toEqual([route, status, answer.text]);
        // An error may repeat what was asked for, and an answer that is none must not hold anything of the owner's.
        if (answer.status === 200) expect(answer.text, route).not.toMatch(new RegExp(`${tenant}(?!-other)|${runId}|${file}`));
      }
    }
  }

  // The owner still has all of it, and nothing was asked of the engine.
  expect(engine.requests.length).toBe(asked);
  expect((await line.openai.files.retrieve(file)).id).toBe(file);
  expect((await line.openai.fineTuning.jobs.retrieve(job)).status).toBe("running");
  const lists = ["runs", "adapters", "dlq", "limits", "usage", "keys", "datasets"];
  const counts = await Promise.all(
    lists.map(async (list) => ((await (await line.fetch(`/v1/loraline/${list}`)).json()) as { data: unknown[] }).data.length),
  );
  expect(counts).toEqual([1, 1, 1, 1, 1, 1, 1]);
  expect(await (await line.fetch("/v1/loraline/limits")).json()).toMatchObject({ data: [{ adapter: "pirate", requestsPerMinute: 1000 }] });
});

test("who knows a trace id and joins its trace still sees only its own spans", async ({ owner: { line, runId, trace } }) => {
  const traceId = traceIdOf(trace) ?? "";
  const spansOf = async (key: string, id: string) => {
    const response = await line.fetch(`/v1/loraline/runs/${id}/trace`, { headers: { authorization: `Bearer ${key}` } });
    return ((await response.json()) as { traceId: string; spans: { attributes: Record<string, unknown> }[] }) ?? {};
  };
  await expect.poll(async () => (await spansOf(line.key, runId)).spans.length).toBeGreaterThan(0);

  const other = `${line.tenant}-other`;
  const client = line.clientFor(await line.keyFor(other));
  const rows = await toFile(Buffer.from('{"prompt":"a","completion":"b"}\n'.repeat(20)), "b.jsonl");
  const headers = { traceparent: `00-${traceId}-00000000000000aa-01` };
  const training_file = (await client.files.create({ file: rows, purpose: "fine-tune" }, { headers })).id;
  const job = await client.fineTuning.jobs.create({ model: base, training_file }, { headers });
  await expect
    .poll(async () =>
      (await spansOf(client.apiKey ?? "", runIdOf(job.id) ?? "")).spans.map(({ attributes }) => attributes["loraline.tenant"]),
    )
    .toEqual([other, other]);
  expect((await spansOf(client.apiKey ?? "", runIdOf(job.id) ?? "")).traceId).toBe(traceId);
  const own = (await spansOf(line.key, runId)).spans;
  expect(own.length).toBeGreaterThan(0);
  expect(own.every(({ attributes }) => attributes["loraline.tenant"] === line.tenant)).toBe(true);
});

test("a dead letter of a run that has ended is not redriven", async ({ owner: { line, job, runId }, nc }) => {
  const at = { tenant: line.tenant, id: runId };
  await using _tokenize = await line.bus.consume({
    consumer: consumers.tokenizeRunRequested,
    handlers: { "run.requested.v1": async () => {} },
  });
  nc.publish(`loraline.${line.tenant}.run.${runId}.requested.v1`, "not json");
  const letterOf = async () =>
    (await line.bus.deadLetters.list(line.tenant)).find(
      ({ subject, durable }) => subject.includes(runId) && durable.startsWith("tokenize"),
    );
  await expect.poll(letterOf).toBeDefined();
  const redrive = async () => line.fetch(`/v1/loraline/dlq/${(await letterOf())?.seq}/redrive`, { method: "POST" });
  await line.bus.publish(events.runFailed, at, { code: "X", message: "broken" });
  await expect.poll(async () => (await line.openai.fineTuning.jobs.retrieve(job)).status).toBe("failed");
  const refused = await redrive();
  expect([refused.status, await refused.json()]).toEqual([
    409,
    expect.objectContaining({ error: expect.objectContaining({ code: "run_ended" }) }),
  ]);
});
