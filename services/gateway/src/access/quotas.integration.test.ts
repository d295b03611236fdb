/** A tenant is held to its quotas by every route that could make more, with an answer that says quota, use and remedy; others go on. */
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { createServer, type IncomingMessage, request as httpRequest } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { text } from "node:stream/consumers";
import { buckets, events } from "@loraline/contracts";
import { putJson } from "@loraline/objects";
import { test } from "@loraline/testkit";
import { toFile } from "openai";
import { describe, expect } from "vitest";
import { datasetIdOf, runIdOf } from "../openai-ids.ts";
import {
  adapterOf,
  base,
  type GatewayUnderTest,
  putAdapter,
  refOf,
  registerEngine,
  startGateway,
  versionOf,
} from "../gateway-under-test.ts";

const uploaded = async (line: GatewayUnderTest, client = line.openai): Promise<string> => {
  const file = await toFile(Buffer.from('{"prompt":"ahoy","completion":"Arr"}\n'.repeat(20)), "d.jsonl");
  return (await client.files.create({ file, purpose: "fine-tune" })).id;
};
const started = async (given: Parameters<typeof startGateway>[0]): Promise<GatewayUnderTest> => {
  const line = await startGateway(given);
  await registerEngine(line.bus);
  return line;
};

describe("a run over its tenant's quota is refused", () => {
  test("for its GPUs, its priority, and a new adapter", async ({ nc, tenant }) => {
    const quotas = {
      default: { gpusPerRun: 4, highestPriority: 2 },
      tenants: { [tenant]: { adapters: 1 } },
      profiles: { large: {}, theirs: { tenants: [`${tenant}-other`] }, moe: { bases: ["qwen3-30b-a3b"] } },
    };
    await using line = await started({ nc, tenant, quotas });
    await putAdapter(line.bus, adapterOf(tenant, "pirate", [versionOf(tenant, "pirate", 1)]));
    const training_file = await uploaded(line);
    const create = (suffix: string, loraline: object, client = line.openai, file = training_file) =>
      client.fineTuning.jobs.create({ model: base, training_file: file, suffix, loraline } as never);

    await expect(create("pirate", { gpus: 2, nodes: 4 })).rejects.toMatchObject({
      status: 400,
      code: "QUOTA_GPUS",
      param: "gpus",
      message: expect.stringContaining("asks for 8 GPUs (2 on each of 4 nodes), and the quota gpusPerRun of this tenant is 4"),
    });
    await expect(create("pirate", { priority: 3 })).rejects.toMatchObject({ code: "QUOTA_PRIORITY", param: "priority" });
    for (const profile of ["theirs", "moe", "huge"]) {
      await expect(create("pirate", { profile })).rejects.toMatchObject({
        status: 400,
        code: "PROFILE_NOT_ALLOWED",
        param: "profile",
        message: expect.stringContaining('Ask for "large", or leave it out'),
      });
    }
    await expect(create("parrot", {})).rejects.toMatchObject({
      code: "QUOTA_ADAPTERS",
      message: expect.stringContaining("this tenant has 1, and its quota is 1. Train a new version of one that exists"),
    });
    // A new version of an adapter that exists is free.
    expect(await create("pirate", { gpus: 2, nodes: 2, priority: 2, profile: "large" })).toMatchObject({ status: "validating_files" });

    const other = line.clientFor(await line.keyFor(`${tenant}-other`));
    expect(await create("parrot", {}, other, await uploaded(line, other))).toMatchObject({ status: "validating_files" });
  });
});

test("a checkpoint that is asked for by chat, and would be one adapter too many, is refused each time until there is room", async ({
  nc,
  tenant,
}) => {
  await using line = await started({ nc, tenant, quotas: { default: { adapters: 1 } } });
  const { bus, objects, openai } = line;
  const job = await openai.fineTuning.jobs.create({ model: base, training_file: await uploaded(line), suffix: "pirate" });
  const at = { tenant, id: runIdOf(job.id) ?? "" };
  const manifest = { version: 1, base: { name: base, revision: "1", digest: refOf("adapter").digest }, rank: 8, parameters: 1 };
  const adapter = await putJson(objects, tenant, "adapter", { ...manifest, targetModules: ["q_proj"], files: [] });
  await bus.publish(events.runStarted, at, { attempt: 1, job: "train-1" }, { key: "1" });
  const published = { adapter, evidence: refOf("evidence"), rank: 8 };
  await bus.publish(events.runCheckpointed, at, { attempt: 1, step: 10, checkpoint: refOf("checkpoint"), published }, { key: "1/10" });
  await expect.poll(async () => (await openai.fineTuning.jobs.checkpoints.list(job.id)).data).toHaveLength(1);
  const [{ fine_tuned_model_checkpoint: model } = { fine_tuned_model_checkpoint: "" }] = (
    await openai.fineTuning.jobs.checkpoints.list(job.id)
  ).data;
  const ask = () => openai.chat.completions.create({ model, messages: [{ role: "user", content: "ahoy" }] });

  // Another adapter came meanwhile.
  await putAdapter(bus, adapterOf(tenant, "parrot", [versionOf(tenant, "parrot", 1)]));
  for (let n = 0; n < 2; n++) {
    await expect(ask()).rejects.toMatchObject({
      status: 403,
      code: "QUOTA_ADAPTERS",
      message: expect.stringContaining('"pirate" would be a new adapter; this tenant has 1, and its quota is 1'),
    });
  }
  const wanted = () => bus.last(events.adapterCheckpointWanted, { tenant, id: "pirate" });
  expect(await wanted()).toBeUndefined();
  await (await bus.bucket(buckets.adapters)).delete(`${tenant}.parrot`);
  await expect(ask()).rejects.toMatchObject({ status: 503, code: "version_loading" });
  expect((await wanted())?.data).toMatchObject({ runId: at.id, step: 10 });
});

test("a tenant whose events take all the room that they may gives no further commands, but for those that make room", async ({
  nc,
  tenant,
}) => {
  await using line = await started({ nc, tenant, quotas: { default: { historyBytes: 40_000 } } });
  const training_file = await uploaded(line);
  const create = () => line.openai.fineTuning.jobs.create({ model: base, training_file, metadata: { note: "n".repeat(500) } });
  const jobs: string[] = [];
  const refused = async (): Promise<unknown> => {
    for (;;) {
      try {
        jobs.push((await create()).id);
      } catch (error) {
        return error;
      }
    }
  };
  expect(await refused()).toMatchObject({ status: 403, code: "QUOTA_HISTORY", message: expect.stringContaining("its quota is 40000") });
  expect(jobs.length).toBeGreaterThan(4);
  expect(await line.bus.eventBytes(tenant)).toBeLessThan(45_000);
  const views = (await (await line.fetch("/v1/loraline/limits")).json()) as { quotas: { quota: string; used: number }[] };
  expect(views.quotas.find(({ quota }) => quota === "historyBytes")?.used).toBe(await line.bus.eventBytes(tenant));
  await expect(uploaded(line)).rejects.toMatchObject({ status: 403, code: "QUOTA_HISTORY" });

  expect(await line.openai.fineTuning.jobs.cancel(jobs[0] ?? "")).toMatchObject({ id: jobs[0] });
  const other = line.clientFor(await line.keyFor(`${tenant}-other`));
  expect(await uploaded(line, other)).toMatch(/^file-/);
});

test("admins change no more in a day than the audit log keeps, and can revoke keys all the same", async ({ nc, tenant }) => {
  await using line = await started({ nc, tenant, quotas: { default: { adminActionsPerDay: 3 } } });
  const post = (path: string, body: object) =>
    line.fetch(path, { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" } });
  const made = await Promise.all(
    [1, 2].map(async (n) => ((await (await post("/v1/loraline/keys", { name: `k${n}` })).json()) as { id: string }).id),
  );
  expect(await line.bus.audit.countOfDay(tenant)).toBe(2);
  expect((await post("/v1/loraline/keys", { name: "k3" })).status).toBe(200);
  const refused = await post("/v1/loraline/keys", { name: "k4" });
  expect([refused.status, await refused.json()]).toMatchObject([
    429,
    {
      error: {
        code: "QUOTA_ADMIN_ACTIONS",
        message: expect.stringContaining("did 3 things within 24 hours, and its quota adminActionsPerDay is 3"),
      },
    },
  ]);
  await expect.poll(async () => (await line.fetch(`/v1/loraline/keys/${made[0]}`, { method: "DELETE" })).status).toBe(200);
  const { data } = (await (await line.fetch("/v1/loraline/audit")).json()) as { data: { action: string }[] };
  expect(data.map(({ action }) => action)).toEqual(["key.revoke", "key.create", "key.create", "key.create"]);
});

test("a run is refused while as many of its tenant wait as may; what runs hold is in the list of quotas", async ({ nc, tenant }) => {
  await using line = await started({ nc, tenant, quotas: { default: { runsWaiting: 5 } } });
  const training_file = await uploaded(line);
  const create = () => line.openai.fineTuning.jobs.create({ model: base, training_file });
  // As train tells it.
  const training = await line.bus.bucket(buckets.training);
  await training.put(tenant, { running: 2, gpus: 8, waiting: 5, at: new Date().toISOString() });
  await expect(create()).rejects.toMatchObject({
    status: 429,
    code: "QUOTA_RUNS_WAITING",
    message: expect.stringContaining("5 runs of this tenant wait already, and its quota runsWaiting is 5"),
  });
  const list = (await (await line.fetch("/v1/loraline/limits")).json()) as {
    quotas: { quota: string; limit: number; used: number | null }[];
  };
  expect(Object.fromEntries(list.quotas.map(({ quota, used }) => [quota, used]))).toMatchObject({
    datasets: 1,
    adapters: 0,
    runsAtOnce: 2,
    gpusAtOnce: 8,
    runsWaiting: 5,
  });
  await training.put(tenant, { running: 2, gpus: 8, waiting: 4, at: new Date().toISOString() });
  expect(await create()).toMatchObject({ status: "validating_files" });
});

test("an upload or import over the number of datasets is refused, until one is deleted", async ({ nc, tenant }) => {
  await using line = await started({ nc, tenant, quotas: { tenants: { [tenant]: { datasets: 2 } } } });
  const [first] = [await uploaded(line), await uploaded(line)];
  const full = {
    status: 403,
    code: "QUOTA_DATASETS",
    message: expect.stringContaining("this tenant has 2 datasets, and its quota is 2. Delete some"),
  };
  await expect(uploaded(line)).rejects.toMatchObject(full);
  const imported = await line.fetch("/v1/loraline/datasets/import", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ url: "https://example.org/a.jsonl" }),
  });
  expect([imported.status, ((await imported.json()) as { error: { code: string } }).error.code]).toEqual([403, "QUOTA_DATASETS"]);
  const other = line.clientFor(await line.keyFor(`${tenant}-other`));
  for (let n = 0; n < 3; n++) await uploaded(line, other);
  // As the collector does with the entry of a dataset that is deleted.
  await (await line.bus.bucket(buckets.datasets)).clear(`${tenant}.${datasetIdOf(first)}`);
  expect(await uploaded(line)).toMatch(/^file-/);
});

describe("bytes of one minute", () => {
  const boundary = "----rows";
  const formOf = (rows: string): string =>
    [
      `--${boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune`,
      `--${boundary}\r\nContent-Disposition: form-data; name="file"; filename="d.jsonl"\r\n\r\n${rows}`,
      `--${boundary}--\r\n`,
    ].join("\r\n");
  const form = formOf('{"prompt":"ahoy","completion":"Arr"}\n'.repeat(1600));
  const rowOf = async (answer: Response) => {
    const { error } = (await answer.json()) as { error?: { code: string; message: string } };
    return { status: answer.status, code: error?.code, message: error?.message, retryAfter: Number(answer.headers.get("retry-after")) };
  };
  const refusal = { status: 429, code: "QUOTA_UPLOAD_RATE", message: expect.stringContaining("100000 bytes in one minute") };

  /** Asks until one is refused: two in one minute are too many, and of three two are in one minute. */
  const refusedOf = async <T extends { status: number }>(send: (n: number) => Promise<T>): Promise<T> => {
    for (let n = 0; n < 2; n++) {
      const answer = await send(n);
      if (answer.status !== 200) return answer;
    }
    return send(2);
  };

  test("are counted by all gateways together, before they are written", async ({ nc, tenant }) => {
    const spoolDir = await mkdtemp(join(tmpdir(), "spool-"));
    try {
      const given = { nc, tenant, spoolDir, quotas: { default: { uploadBytesPerMinute: 100_000 } } };
      await using one = await started(given);
      await using other = await started({ ...given, projector: false });
      const headers = { "content-type": `multipart/form-data; boundary=${boundary}` };
      const send = (line: GatewayUnderTest, key = one.key) =>
        line.fetch("/v1/files", { method: "POST", headers: { ...headers, authorization: `Bearer ${key}` }, body: form }).then(rowOf);
      const refused = await refusedOf((n) => send(n % 2 === 0 ? one : other));
      expect(refused).toMatchObject(refusal);
      expect(refused.retryAfter).toBeGreaterThanOrEqual(1);
      expect(refused.retryAfter).toBeLessThanOrEqual(60);
      // Another tenant's bytes are its own.
      expect(await send(one, await one.keyFor(`${tenant}-other`))).toMatchObject({ status: 200 });

      // A client that says how much comes is refused before it has sent any of it.
      const announced = await refusedOf(async (n) => {
        const sent = httpRequest(`${(n % 2 === 0 ? other : one).url}/v1/files`, {
          method: "POST",
          headers: { ...headers, authorization: `Bearer ${one.key}`, "content-length": Buffer.byteLength(form) },
        });
        sent.flushHeaders();
        // Admitted in a new minute: the rest has to come.
        const late = setTimeout(() => sent.end(form), 2000);
        const answer = await new Promise<IncomingMessage>((resolve, reject) => sent.on("response", resolve).on("error", reject));
        clearTimeout(late);
        const body = JSON.parse(await text(answer)) as { error?: { code: string; message: string } };
        sent.destroy();
        return { status: answer.statusCode ?? 0, ...body.error };
      });
      expect(announced).toMatchObject(refusal);

      // One that does not is cut off there.
      const cut = await refusedOf(() => {
        const body = Readable.toWeb(Readable.from(form.match(/[^]{1,10000}/g) ?? [])) as ReadableStream;
        return one.fetch("/v1/files", { method: "POST", headers, body, duplex: "half" }).then(rowOf);
      });
      expect(cut).toMatchObject(refusal);
      expect(await readdir(spoolDir)).toEqual([]);

      const alone = await one.fetch("/v1/files", { method: "POST", headers, body: formOf("x".repeat(100_000)) }).then(rowOf);
      expect(alone).toMatchObject({ status: 413, code: "QUOTA_UPLOAD_RATE", message: expect.stringContaining("can never be taken") });
    } finally {
      await rm(spoolDir, { recursive: true });
    }
  });
});

test("imports of adapters: a tenant whose servers never end holds its own places only", async ({ nc, tenant }) => {
  let asked = 0;
  const silent = createServer((request, response) => {
    asked += 1;
    if (request.url?.startsWith("/gone") === true) response.writeHead(404).end();
    else response.write("{");
  });
  await new Promise<void>((resolve) => silent.listen(0, "127.0.0.1", resolve));
  const { port } = silent.address() as AddressInfo;
  const leaving = new AbortController();
  try {
    const quotas = { default: { importsAtOnce: 1 } };
    await using line = await started({ nc, tenant, quotas, imports: { allow: [`127.0.0.1:${port}`] } });
    const add = async (key: string, path: string) => {
      const answer = await fetch(`${line.url}/v1/loraline/adapters`, {
        method: "POST",
        headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
        body: JSON.stringify({ base, name: "parrot", from: { url: `http://127.0.0.1:${port}/${path}` } }),
        signal: leaving.signal,
      });
      const { error } = (await answer.json()) as { error: { code: string; message: string } };
      return [answer.status, error.code, error.message];
    };
    const hanging = add(line.key, "silent").catch(() => "left");
    await expect.poll(() => asked).toBe(1);
    expect(await add(line.key, "gone")).toEqual([429, "QUOTA_IMPORTS", expect.stringContaining("its quota importsAtOnce is 1")]);
    expect(await add(await line.keyFor(`${tenant}-other`), "gone")).toEqual([422, "FETCH_REFUSED", expect.anything()]);
    leaving.abort();
    expect(await hanging).toBe("left");
  } finally {
    silent.closeAllConnections();
    silent.close();
  }
});
