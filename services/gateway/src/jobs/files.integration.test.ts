/** Uploads as the official Node SDK makes them, and as broken programs make them. */
import { createHash } from "node:crypto";
import { get } from "node:http";
import { connect } from "node:net";
import { buckets, datasetKey, events } from "@loraline/contracts";
import { test as base } from "@loraline/testkit";
import { toFile } from "openai";
import { ulid } from "ulid";
import { describe, expect } from "vitest";
import { type GatewayUnderTest, playIngested, startGateway } from "../gateway-under-test.ts";
import { datasetIdOf } from "../openai-ids.ts";

const test = base.extend("line", async ({ nc, tenant }, { onCleanup }): Promise<GatewayUnderTest> => {
  const line = await startGateway({ nc, tenant, uploadLimitBytes: 1_000_000 });
  onCleanup(() => line[Symbol.asyncDispose]());
  return line;
});

const rows = '{"prompt":"ahoy","completion":"Arr"}\n'.repeat(20);
const sha256 = (text: string) => createHash("sha256").update(text).digest("hex");
const upload = (line: GatewayUnderTest, text = rows, name = "pirate.jsonl") =>
  toFile(Buffer.from(text), name).then((file) => line.openai.files.create({ file, purpose: "fine-tune" }));
const rawBlobs = (line: GatewayUnderTest) => Array.fromAsync(line.objects.list(line.tenant, "raw"));

describe("files", () => {
  test("are uploaded, shown, listed, read back and deleted", async ({ line }) => {
    const file = await upload(line);
    expect(file).toMatchObject({ object: "file", bytes: rows.length, filename: "pirate.jsonl", purpose: "fine-tune", status: "uploaded" });
    expect(file.created_at).toBeGreaterThan(Date.now() / 1000 - 60);
    expect(file).toHaveProperty("loraline.sha256", sha256(rows));

    expect(await line.openai.files.retrieve(file.id)).toEqual(file);
    expect((await line.openai.files.list()).data).toEqual([file]);
    expect(await (await line.openai.files.content(file.id)).text()).toBe(rows);

    const stays = [{ what: "event `dataset.deleted`" }, { what: "audit log" }];
    const deleted = await line.openai.files.delete(file.id);
    expect(deleted).toMatchObject({ id: file.id, object: "file", deleted: true, loraline: { stays } });
    await expect(line.openai.files.retrieve(file.id)).rejects.toMatchObject({ status: 404, code: "not_found", param: "id" });
    await expect(line.openai.files.content(file.id)).rejects.toMatchObject({ status: 404 });
    expect((await line.openai.files.list()).data).toEqual([]);
  });

  test("are listed in pages of few bytes, which the SDK follows, however large their entries are", async ({ line }) => {
    const datasets = await line.bus.bucket(buckets.datasets);
    const mapping = { language: "auto", on_unknown: "fail", system: "s".repeat(60_000) } as const;
    const ids: string[] = [];
    const now = Date.now();
    for (let n = 0; n < 200; n++) {
      const id = ulid(now + n);
      const receivedAt = new Date(now + n).toISOString();
      const rest = {
        blob: null,
        parts: [],
        source: null,
        settledAt: null,
        manifest: null,
        report: null,
        waiting: null,
        error: null,
        trace: null,
      };
      const state = {
        tenant: line.tenant,
        datasetId: id,
        status: "importing",
        filename: "a.jsonl",
        mapping,
        receivedAt,
        seq: n + 1,
      } as const;
      await datasets.put(datasetKey({ tenant: line.tenant, id }), { ...rest, ...state, records: null, rejections: null });
      ids.unshift(`file-${id}`);
    }
    const first = await line.openai.files.list();
    expect(first.has_more).toBe(true);
    expect(first.data.length).toBeGreaterThan(100);
    expect(first.data.length * 60_000).toBeLessThan(8 * 1024 ** 2);
    expect((await Array.fromAsync(line.openai.files.list())).map(({ id }) => id)).toEqual(ids);
    const ours = (await (await line.fetch("/v1/loraline/datasets")).json()) as { data: unknown[]; has_more: boolean };
    expect([ours.data.length, ours.has_more]).toEqual([first.data.length, true]);
  });

  test("are read back by so many at once of one tenant that slow readers cannot fill the gateway", async ({ nc, tenant }) => {
    await using line = await startGateway({ nc, tenant });
    const file = await upload(line, rows.repeat(30_000));
    const path = `/v1/files/${file.id}/content`;
    // Readers that ask, and then read nothing: what sockets hold is far less than the file.
    const readers = await Promise.all(
      Array.from(
        { length: 64 },
        () =>
          new Promise<{ status: number | undefined; leave: () => void }>((resolve, reject) => {
            const asked = get(`${line.url}${path}`, { agent: false, headers: { authorization: `Bearer ${line.key}` } }, (answer) => {
              answer.pause();
              resolve({ status: answer.statusCode, leave: () => void asked.destroy() });
            }).on("error", reject);
          }),
      ),
    );
    expect(new Set(readers.map(({ status }) => status))).toEqual(new Set([200]));
    const refused = await line.fetch(path);
    expect([refused.status, refused.headers.get("retry-after")]).toEqual([503, "2"]);
    expect(((await refused.json()) as { error: { code: string } }).error.code).toBe("too_many_downloads");
    // Others are not concerned, and neither is all else that this tenant asks.
    expect((await line.openai.files.list()).data).toHaveLength(1);
    const other = line.clientFor(await line.keyFor(`${tenant}-other`));
    const small = await other.files.create({ file: await toFile(Buffer.from(rows), "a.jsonl"), purpose: "fine-tune" });
    expect(await (await other.files.content(small.id)).text()).toBe(rows);
    for (const { leave } of readers) leave();
    await expect.poll(async () => (await line.fetch(path)).status).toBe(200);
  });

  test("carry a mapping, which is checked before anything is announced", async ({ line }) => {
    const send = async (mapping: string, key?: string) => {
      const file = await toFile(Buffer.from(rows), "pirate.jsonl");
      const body = { file, purpose: "fine-tune" as const, mapping };
      return line.openai.files.create(body, key === undefined ? {} : { headers: { "Idempotency-Key": key } });
    };
    const mapping = { format: "question-answer", columns: { question: "Frage" } };
    const file = await send(JSON.stringify(mapping), "one");
    const at = { tenant: line.tenant, id: datasetIdOf(file.id) ?? "" };
    expect((await line.bus.last(events.datasetReceived, at))?.data.mapping).toMatchObject(mapping);
    expect((await send(JSON.stringify(mapping), "one")).id).toBe(file.id);
    await expect(send("{}", "one")).rejects.toMatchObject({ code: "idempotency_key_reused" });

    const before = (await line.openai.files.list()).data.length;
    await expect(send("{")).rejects.toMatchObject({ status: 400, code: "invalid_mapping", param: "mapping" });
    const wrong = send('{"format":"code","columns":{"answer":"a"}}');
    await expect(wrong).rejects.toMatchObject({ status: 400, code: "invalid_mapping", param: "mapping.columns.answer" });
    const inParts = { file: await toFile(Buffer.from(rows), "a.jsonl"), purpose: "fine-tune" as const, mapping };
    await expect(line.openai.files.create(inParts)).rejects.toMatchObject({
      status: 400,
      message: expect.stringMatching(/as JSON text/) as string,
    });
    expect((await line.openai.files.list()).data).toHaveLength(before);
  });

  test("become processed when ingest has read them", async ({ line }) => {
    const file = await upload(line);
    const waiting = line.openai.files.waitForProcessing(file.id, { pollInterval: 50, maxWait: 10_000 });
    await playIngested(line.bus, line.tenant, datasetIdOf(file.id) ?? "");
    expect(await waiting).toMatchObject({ status: "processed", loraline: { records: 12, rejections: 1, error: null } });
  });

  test("become an error with the reason when ingest refuses them", async ({ line }) => {
    const file = await upload(line, "not json\n");
    const message = "line 1: not JSON";
    const at = { tenant: line.tenant, id: datasetIdOf(file.id) ?? "" };
    await line.bus.publish(events.datasetRejected, at, { code: "ALL_ROWS_REJECTED", message, param: "pirate.jsonl", rejections: 1 });
    expect(await line.openai.files.waitForProcessing(file.id, { pollInterval: 50, maxWait: 10_000 })).toMatchObject({
      status: "error",
      status_details: message,
      loraline: { error: { code: "ALL_ROWS_REJECTED" } },
    });
  });

  test("are announced after their bytes are stored, in the request's trace", async ({ line }) => {
    const traceparent = "00-11111111111111111111111111111111-2222222222222222-01";
    const file = await line.openai.files.create(
      { file: await toFile(Buffer.from(rows), "a.jsonl"), purpose: "fine-tune" },
      { headers: { traceparent } },
    );
    const received = await line.bus.last(events.datasetReceived, { tenant: line.tenant, id: datasetIdOf(file.id) ?? "" });
    expect(received?.trace).toMatch(/^00-1{32}-/);
    expect(received?.data).toMatchObject({ filename: "a.jsonl", by: "test" });
    expect(await line.objects.head(line.tenant, received?.data.blob ?? { kind: "raw", digest: "sha256:" })).toEqual({ size: rows.length });
  });

  test("page with cursors in both orders, also while they are deleted", async ({ line }) => {
    const ids: string[] = [];
    for (const n of [1, 2, 3, 4, 5]) ids.push((await upload(line, rows.repeat(n), `${n}.jsonl`)).id);
    const newestFirst = ids.toReversed();
    const all = await Array.fromAsync(line.openai.files.list({ limit: 2 }), (file) => file.id);
    expect(all).toEqual(newestFirst);
    expect(await Array.fromAsync(line.openai.files.list({ limit: 2, order: "asc" }), (file) => file.id)).toEqual(ids);
    expect((await line.openai.files.list({ purpose: "batch" })).data).toEqual([]);
    for await (const file of line.openai.files.list({ limit: 2 })) await line.openai.files.delete(file.id);
    expect((await line.openai.files.list()).data).toEqual([]);
    await expect(line.openai.files.list({ limit: 0 })).rejects.toMatchObject({ status: 400, param: "limit" });
    await expect(line.openai.files.list({ after: "file-nope" })).rejects.toMatchObject({ status: 400, param: "after" });
  });

  test("keep bytes that another file has too", async ({ line }) => {
    const [one, two] = [await upload(line), await upload(line, rows, "same.jsonl")];
    await line.openai.files.delete(one.id);
    expect(await (await line.openai.files.content(two.id)).text()).toBe(rows);
    await line.openai.files.delete(two.id);
    // The collector removes them, for both.
    const deletions = await (await line.bus.bucket(buckets.deletions)).entries(`${line.tenant}.>`);
    expect(deletions.map(({ value }) => value)).toEqual(
      [one, two].map(({ id }) => expect.objectContaining({ what: "dataset", id: id.slice("file-".length), doneAt: null })),
    );
  });

  test("are the same file for the same Idempotency-Key", async ({ line }) => {
    const file = async (text: string) => ({ file: await toFile(Buffer.from(text), "a.jsonl"), purpose: "fine-tune" as const });
    const headers = { "idempotency-key": "upload-1" };
    const first = await line.openai.files.create(await file(rows), { headers });
    expect(await line.openai.files.create(await file(rows), { headers })).toEqual(first);
    await expect(line.openai.files.create(await file(`${rows}\n`), { headers })).rejects.toMatchObject({ code: "idempotency_key_reused" });
    expect((await line.openai.files.list()).data).toHaveLength(1);
  });

  test("that are wrong are refused with OpenAI's error, and nothing is stored", async ({ line }) => {
    await expect(upload(line, "")).rejects.toMatchObject({ status: 400, code: "empty_file", param: "file", type: "invalid_request_error" });
    await expect(upload(line, "x".repeat(1_000_001))).rejects.toMatchObject({ status: 413, code: "file_too_large", param: "file" });
    await expect(line.openai.files.create({ file: await toFile(Buffer.from(rows), "a"), purpose: "batch" })).rejects.toMatchObject({
      status: 400,
      code: "invalid_purpose",
      param: "purpose",
    });

    const form = async (fields: Record<string, string | Blob>) => {
      const data = new FormData();
      for (const [name, value] of Object.entries(fields)) data.append(name, value);
      const response = await line.fetch("/v1/files", { method: "POST", body: data });
      return { status: response.status, ...((await response.json()) as { error: object }) };
    };
    expect(await form({ purpose: "batch", file: new Blob([rows]) })).toMatchObject({ status: 400, error: { param: "purpose" } });
    expect(await form({ file: new Blob([rows]) })).toMatchObject({ status: 400, error: { param: "purpose" } });
    expect(await form({ purpose: "fine-tune" })).toMatchObject({ status: 400, error: { code: "missing_file" } });
    expect(await form({ purpose: "fine-tune", data: new Blob([rows]) })).toMatchObject({ status: 400, error: { code: "unknown_field" } });
    expect(await form({ purpose: "fine-tune", "expires_after[seconds]": "3600", file: new Blob([rows]) })).toMatchObject({
      status: 400,
      error: { param: "expires_after" },
    });

    const json = await line.fetch("/v1/files", { method: "POST", body: "{}", headers: { "content-type": "application/json" } });
    expect([json.status, await json.json()]).toMatchObject([400, { error: { code: "invalid_content_type" } }]);
    const broken = await line.fetch("/v1/files", {
      method: "POST",
      body: '--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nhalf',
      headers: { "content-type": "multipart/form-data; boundary=x" },
    });
    expect([broken.status, await broken.json()]).toMatchObject([400, { error: { code: "invalid_multipart" } }]);

    expect(await rawBlobs(line)).toEqual([]);
    expect(await (await line.bus.bucket(buckets.datasets)).entries(`${line.tenant}.*`)).toEqual([]);
  });

  test("that break off leave nothing, and the gateway goes on", async ({ line }) => {
    const { hostname, port } = new URL(line.url);
    const socket = connect(Number(port), hostname);
    socket.write(
      [
        "POST /v1/files HTTP/1.1",
        "host: x",
        `authorization: Bearer ${line.key}`,
        "content-type: multipart/form-data; boundary=x",
        "content-length: 100000",
        "",
        "--x",
        'content-disposition: form-data; name="file"; filename="a.jsonl"',
        "",
        rows,
      ].join("\r\n"),
    );
    await new Promise((resolve) => setTimeout(resolve, 100));
    socket.destroy();
    await expect.poll(() => line.logged.some((entry) => String(entry["url"]) === "/v1/files" && entry["status"] === 400)).toBe(true);
    expect(await rawBlobs(line)).toEqual([]);
    expect((await line.openai.files.list()).data).toEqual([]);
    expect(line.logged.filter(({ level }) => Number(level) >= 50)).toEqual([]);
  });
});
