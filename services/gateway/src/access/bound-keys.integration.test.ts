/** A key that is bound to the models of one adapter tries every route there is on that adapter and on another one. */
import { buckets, httpRoutes, type HttpRoute, type Scope } from "@loraline/contracts";
import { putJson } from "@loraline/objects";
import { test as testWithNats } from "@loraline/testkit";
import { toFile } from "openai";
import { expect } from "vitest";
import { createApiKey } from "./auth.ts";
import {
  adapterOf,
  base,
  digestOf,
  heldBy,
  playIngested,
  putAdapter,
  putReplica,
  registerEngine,
  replicaOf,
  startEngine,
  startGateway,
  versionOf,
} from "../gateway-under-test.ts";
import { datasetIdOf, runIdOf } from "../openai-ids.ts";

const mostScopes: readonly Scope[] = ["infer", "train", "promote"];

const test = testWithNats.extend("tried", async ({ nc, tenant }, { onCleanup }) => {
  const owned = new AsyncDisposableStack();
  onCleanup(() => owned.disposeAsync());
  const line = owned.use(await startGateway({ nc, tenant }));
  await registerEngine(line.bus);
  const states = ["pirate", "parrot"].map((name) => {
    const versions = [versionOf(tenant, name, 1), versionOf(tenant, name, 2)];
    return { state: adapterOf(tenant, name, versions), versions };
  });
  const engine = owned.use(await startEngine(base, ...states.flatMap(({ versions }) => versions.map(({ engineName }) => engineName))));
  for (const { state } of states) await putAdapter(line.bus, state);
  const held = states.flatMap(({ state, versions }) => versions.map((version) => heldBy(state, version)));
  await putReplica(line.bus, replicaOf("r1", engine.url, held));
  owned.defer(async () => (await line.bus.bucket(buckets.replicas)).delete("local.r1"));
  await expect.poll(async () => (await line.openai.models.list()).data.length).toBe(7);
  const rows = Buffer.from('{"prompt":"ahoy","completion":"Arr"}\n'.repeat(20));
  const file = (await line.openai.files.create({ file: await toFile(rows, "rows.jsonl"), purpose: "fine-tune" })).id;
  await playIngested(line.bus, tenant, datasetIdOf(file) ?? "");
  const jobOf = async (suffix: string) => (await line.openai.fineTuning.jobs.create({ model: base, training_file: file, suffix })).id;
  const jobs = { pirate: await jobOf("pirate"), parrot: await jobOf("parrot") };
  const ask = async (key: string, method: string, path: string, body?: object) => {
    const response = await fetch(line.url + path, {
      method,
      headers: { authorization: `Bearer ${key}`, ...(body === undefined ? {} : { "content-type": "application/json" }) },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    const text = await response.text();
    return { status: response.status, code: /"code":"?(\w+)/.exec(text)?.[1], text };
  };
  const keyOf = (...models: string[]) => createApiKey({ bus: line.bus }, { tenant, name: "bound", scopes: mostScopes, models });
  return { line, tenant, file, jobs, engine, ask, keyOf };
});

test("asks for the adapter's models only: the alias, the versions and the bases that it names", async ({ tried }) => {
  const { tenant, engine, ask, keyOf } = tried;
  const key = await keyOf("pirate", "pirate@2");
  for (const path of ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]) {
    const refused = [base, `${tenant}/pirate@1`, `${tenant}/parrot`, `ft:${base}:${tenant}:pirate:1`, "no-such-model", "other/pirate"];
    const asked = engine.requests.length;
    for (const model of refused)
      expect(await ask(key, "POST", path, { model }), model).toMatchObject({ status: 403, code: "model_not_allowed" });
    expect(engine.requests.length).toBe(asked);
    for (const model of [`${tenant}/pirate`, `${tenant}/pirate@2`, `ft:${base}:${tenant}:pirate:2`])
      expect((await ask(key, "POST", path, { model, messages: [], prompt: "", input: "" })).status, model).not.toBe(403);
  }
  expect((await ask(key, "POST", "/v1/chat/completions", { messages: [] })).code).toBe("missing_model");
  const idsFor = async (...models: string[]) => {
    const { text } = await ask(await keyOf(...models), "GET", "/v1/models");
    return (JSON.parse(text) as { data: { id: string }[] }).data.map(({ id }) => id);
  };
  expect(await idsFor("pirate", "pirate@2")).toEqual([`${tenant}/pirate`, `${tenant}/pirate@2`]);
  expect(await idsFor("base:*")).toEqual([base]);
  expect(await idsFor("p*@1")).toEqual([`${tenant}/parrot@1`, `${tenant}/pirate@1`]);
  const onBase = await ask(await keyOf(`base:${base}`), "POST", "/v1/chat/completions", { model: base, messages: [] });
  expect(onBase.status).toBe(200);
});

test("no route shows or changes another adapter, and a route that says nothing of bound keys is closed to them", async ({ tried }) => {
  const { line, tenant, file, jobs, ask, keyOf } = tried;
  const key = await keyOf("pirate");
  const bodies: Record<string, (adapter: string) => object> = {
    createFineTuningJob: (suffix) => ({ model: base, training_file: file, suffix }),
    addAdapter: (name) => ({ base, name, from: { url: "https://127.0.0.1/none" } }),
    promoteAdapter: () => ({ version: 9 }),
  };
  const responseOf = async (adapter: string) => (await line.openai.responses.create({ model: `${tenant}/${adapter}`, input: "x" })).id;
  const responses = { pirate: await responseOf("pirate"), parrot: await responseOf("parrot") };
  const valuesOf = (adapter: "pirate" | "parrot"): Record<string, string> => ({
    "{adapter}": adapter,
    "{model}": `${tenant}/${adapter}`,
    "{fine_tuning_job_id}": jobs[adapter],
    "{response_id}": responses[adapter],
    "{run_id}": runIdOf(jobs[adapter]) ?? "",
    "{file_id}": file,
    "{dataset_id}": datasetIdOf(file) ?? "",
    "{key_id}": "x",
    "{seq}": "1",
  });
  const tell = async (id: string, route: HttpRoute, adapter: "pirate" | "parrot") => {
    const path = Object.entries(valuesOf(adapter)).reduce((whole, [name, value]) => whole.replace(name, value), route.path);
    const body = bodies[id]?.(adapter) ?? (route.body === undefined ? undefined : { model: `${tenant}/${adapter}` });
    return ask(key, route.method, path, body);
  };
  const judged = Object.entries<HttpRoute>(httpRoutes).filter(
    // What may be deleted is not tried: files are nobody's adapter.
    ([id, { scopes, method }]) => scopes.length > 0 && !(method === "DELETE" && id.includes("File")),
  );
  for (const [id, route] of judged) {
    const onOther = await tell(id, route, "parrot");
    if (route.scopes.every((scope) => scope === "admin")) expect(onOther, id).toMatchObject({ status: 403, code: "insufficient_scope" });
    else if (route.bound === undefined) expect(onOther, id).toMatchObject({ status: 403, code: "model_not_allowed" });
    else if (route.bound === "free") expect(onOther.status, id).not.toBe(403);
    else if (/^list(Models|Runs|Adapters|Paginated\w+)$/.test(id)) {
      expect(onOther.status, id).toBe(200);
      expect(onOther.text, id).toContain("pirate");
      expect(onOther.text, id).not.toContain("parrot");
    } else if (id === "followChanges") {
      // Not a stream, since the request does not accept one; what streams tell is tried in console/.
      expect(onOther.status, id).toBe(400);
    } else {
      expect(onOther, `${id} ${onOther.text}`).toMatchObject({ status: 403, code: "model_not_allowed" });
      expect((await tell(id, route, "pirate")).status, id).not.toBe(403);
    }
  }
  expect((await line.openai.fineTuning.jobs.list()).data.map(({ id }) => id)).toContain(jobs.parrot);
  expect((await line.openai.fineTuning.jobs.retrieve(jobs.parrot)).status).not.toBe("cancelled");
  // Files belong to no adapter; what stays of one is told without the names of others.
  const { text } = await ask(key, "DELETE", `/v1/files/${file}`);
  expect(text).toContain(runIdOf(jobs.pirate));
  expect(text).toContain("a run of another adapter");
  expect(text).not.toContain(runIdOf(jobs.parrot));
});

test("begins no training with an adapter that it may not name, whose weights would be in the result", async ({ tried }) => {
  const { tenant, file, ask, keyOf } = tried;
  const key = await keyOf("pirate", "pirate@2");
  const start = (init_from: string) =>
    ask(key, "POST", "/v1/fine_tuning/jobs", { model: base, training_file: file, suffix: "pirate", loraline: { init_from } });
  for (const name of ["parrot", "parrot@1", `${tenant}/parrot@2`])
    expect(await start(name), name).toMatchObject({ status: 403, code: "model_not_allowed" });
  expect((await start(`${tenant}/pirate@2`)).status).toBe(200);
});

test("takes no other adapter's files by their digest, and is not told that they are there", async ({ tried }) => {
  const { line, tenant, ask, keyOf } = tried;
  const stored = async (adapter: string): Promise<string> => {
    const about = { name: base, revision: adapter, digest: digestOf("b") };
    const manifest = await putJson(line.objects, tenant, "adapter", {
      version: 1,
      base: about,
      rank: 8,
      targetModules: [],
      parameters: 1,
      files: [],
    });
    await putAdapter(line.bus, adapterOf(tenant, adapter, [versionOf(tenant, adapter, 1, { manifest })]));
    return manifest.digest;
  };
  const [own, other] = [await stored("pirate"), await stored("parrot")];
  const take = (key: string, object: string) => ask(key, "POST", "/v1/loraline/adapters", { base, name: "pirate", from: { object } });
  const bound = await keyOf("pirate");
  // These manifests name no files.
  expect(await take(bound, own)).toMatchObject({ status: 400, code: "ADAPTER_FILES_MISSING" });
  expect(await take(line.key, other)).toMatchObject({ status: 400, code: "ADAPTER_FILES_MISSING" });
  const [refused, missing] = [await take(bound, other), await take(bound, digestOf("c"))];
  expect(refused).toMatchObject({ status: 400, code: "OBJECT_MISSING" });
  expect(refused.text.replace(other, "")).toBe(missing.text.replace(digestOf("c"), ""));
});
