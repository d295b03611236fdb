/** What ingest found, over HTTP. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { buckets, datasetReport, datasetState, events, everyDeletionOf } from "@loraline/contracts";
import { putJson, putPictureTable } from "@loraline/objects";
import { test as base } from "@loraline/testkit";
import { toFile } from "openai";
import { describe, expect } from "vitest";
import { type GatewayUnderTest, startGateway } from "../gateway-under-test.ts";
import { datasetIdOf } from "../openai-ids.ts";

const test = base.extend("line", async ({ nc, tenant }, { onCleanup }): Promise<GatewayUnderTest> => {
  const line = await startGateway({ nc, tenant });
  onCleanup(() => line[Symbol.asyncDispose]());
  return line;
});
const get = (line: GatewayUnderTest, path: string): Promise<Response> =>
  fetch(`${line.url}/v1/loraline/datasets${path}`, { headers: { authorization: `Bearer ${line.openai.apiKey}` } });

describe("datasets", () => {
  test("are listed with their report and every rejection", async ({ line }) => {
    const { bus, objects, tenant } = line;
    const file = await line.openai.files.create({ file: await toFile(Buffer.from("{}\n[]\n"), "a.jsonl"), purpose: "fine-tune" });
    const id = datasetIdOf(file.id) ?? "";
    const early = await get(line, `/${id}/report`);
    expect({ status: early.status, body: await early.json() }).toMatchObject({ status: 404, body: { error: { code: "not_found" } } });

    const rejections = [1, 2].map((at) => ({ file: "a.jsonl", line: at, code: "FORMAT_UNKNOWN", message: `line ${at}: no known format` }));
    const lines = rejections.map((one) => `${JSON.stringify(one)}\n`).join("");
    const report = datasetReport.parse({
      rows: 2,
      records: 0,
      rejections: 2,
      formats: {},
      reasons: { FORMAT_UNKNOWN: 2 },
      exactDuplicates: 0,
      warnings: [],
      firstRejections: rejections,
      allRejections: await objects.put(tenant, "report", lines),
    });
    const ref = await putJson(objects, tenant, "report", report);
    await bus.publish(events.datasetRejected, { tenant, id }, { code: "ALL_ROWS_REJECTED", message: "none", report: ref, rejections: 2 });
    await expect.poll(async () => ((await (await get(line, `/${id}`)).json()) as { status: string }).status).toBe("rejected");

    expect(await (await get(line, `/${file.id}/report`)).json()).toEqual(report);
    expect(await (await get(line, `/${id}/rejections`)).text()).toBe(lines);
    expect(await (await get(line, "")).json()).toMatchObject({ data: [{ datasetId: id, filename: "a.jsonl", rejections: 2 }] });

    await line.openai.files.delete(file.id);
    await expect.poll(async () => (await get(line, `/${id}`)).status).toBe(404);
    expect(await (await get(line, "")).json()).toEqual({ data: [], has_more: false });
  });

  test("show their pictures: to their tenant, as nothing but pictures", async ({ line }) => {
    const { bus, objects, tenant } = line;
    const red = readFileSync(join(import.meta.dirname, "../../../../packages/tokens/testdata/pictures/red-square.png"));
    const ref = await objects.put(tenant, "picture", red);
    const other = await objects.put(tenant, "picture", Buffer.from("of another dataset"));
    const entry = { digest: ref.digest, bytes: red.length, media_type: "image/png" as const, width: 24, height: 16 };
    const pictures = await putPictureTable(objects, tenant, [entry]);
    const manifestOf = async (of: typeof pictures) => {
      const source = await objects.put(tenant, "raw", "{}");
      const report = await objects.put(tenant, "report", "{}");
      const counts = { records: 1, rejections: 0, formats: {}, chunks: [] };
      const made = { version: 1, source, ...counts, report, code: "test", ...(of && { pictures: of }) };
      return { counts, report, manifest: await putJson(objects, tenant, "dataset", made) };
    };
    const upload = async (of: typeof pictures): Promise<string> => {
      const file = await line.openai.files.create({ file: await toFile(Buffer.from("{}\n"), "a.jsonl"), purpose: "fine-tune" });
      const id = datasetIdOf(file.id) ?? "";
      const { counts, report, manifest } = await manifestOf(of);
      const { chunks: _none, ...told } = counts;
      await bus.publish(events.datasetIngested, { tenant, id }, { ...told, manifest, report, cacheHit: false });
      await expect.poll(async () => ((await (await get(line, `/${id}`)).json()) as { status: string }).status).toBe("ingested");
      return id;
    };
    const id = await upload(pictures);
    const answer = await get(line, `/${id}/pictures/${ref.digest}`);
    expect({ status: answer.status, headers: Object.fromEntries(answer.headers) }).toMatchObject({
      status: 200,
      headers: {
        "content-type": "image/png",
        "content-length": String(red.length),
        "x-content-type-options": "nosniff",
        "content-security-policy": "default-src 'none'; sandbox",
      },
    });
    expect(Buffer.from(await answer.arrayBuffer()).equals(red)).toBe(true);
    const paths = [`/${id}/pictures/${other.digest}`, `/${id}/pictures/nonsense`, `/${await upload(undefined)}/pictures/${ref.digest}`];
    for (const path of paths) expect((await get(line, path)).status, path).toBe(404);
  });

  test("are imported by URL or hub id: one request, one dataset, shown while it is fetched", async ({ line }) => {
    const { bus, tenant } = line;
    const post = (body: unknown, key?: string): Promise<Response> =>
      fetch(`${line.url}/v1/loraline/datasets/import`, {
        method: "POST",
        headers: {
          authorization: `Bearer ${line.openai.apiKey}`,
          "content-type": "application/json",
          ...(key === undefined ? {} : { "idempotency-key": key }),
        },
        body: JSON.stringify(body),
      });
    for (const body of [{}, { url: "https://a.test/x", hub: "a/b" }, { hub: "../b" }, { url: "https://a.test/x", file: "y" }]) {
      const refused = await post(body);
      expect({ status: refused.status, body: await refused.json() }).toMatchObject({
        status: 400,
        body: { error: { code: "invalid_body" } },
      });
    }
    for (const [url, code] of [
      ["file:///etc/passwd", "URL_REFUSED"],
      ["ftp://a.test/x", "URL_REFUSED"],
      ["https://me:secret@a.test/x", "URL_REFUSED"],
      ["a.jsonl", "URL_INVALID"],
    ]) {
      const refused = await post({ url });
      expect({ url, status: refused.status, body: await refused.json() }).toMatchObject({
        url,
        status: 400,
        body: { error: { code, param: "url" } },
      });
    }
    const body = { hub: "acme/pirates", split: "train", mapping: { columns: { question: "Frage" } } };
    const asked = await post(body, "k1");
    expect(asked.status).toBe(202);
    const dataset = datasetState.parse(await asked.json());
    expect(dataset).toMatchObject({
      status: "importing",
      blob: null,
      filename: "acme/pirates",
      source: { hub: "acme/pirates", split: "train" },
    });
    const { datasetId: id } = dataset;
    expect(await (await post(body, "k1")).json()).toMatchObject({ datasetId: id });
    expect((await post({ hub: "acme/other" }, "k1")).status).toBe(400);
    expect((await bus.first(events.datasetImportRequested, { tenant, id }))?.data).toMatchObject({
      source: dataset.source,
      mapping: body.mapping,
    });

    const file = await line.openai.files.retrieve(`file-${id}`);
    expect(file).toMatchObject({ bytes: 0, status: "uploaded", status_details: "The file is being fetched." });
    await expect(line.openai.files.content(file.id)).rejects.toMatchObject({ status: 404 });

    const part = (text: string) => line.objects.put(tenant, "raw", text);
    const parts = [{ blob: await part("second"), filename: "2.jsonl" }];
    await bus.publish(events.datasetReceived, { tenant, id }, { blob: await part("first"), filename: "1.jsonl", parts });
    await expect.poll(async () => (await line.openai.files.retrieve(file.id)).filename).toBe("1.jsonl");
    expect(await line.openai.files.retrieve(file.id)).toMatchObject({ bytes: 11, status: "uploaded", status_details: null });
    expect(await (await line.openai.files.content(file.id)).text()).toBe("first");
    // The bytes of all parts are the collector's (tests/deletion.integration.test.ts); nobody can read them from now on.
    await line.openai.files.delete(file.id);
    await expect(line.openai.files.content(file.id)).rejects.toMatchObject({ status: 404 });
    expect(await bus.bucket(buckets.deletions).then((deletions) => deletions.entries(everyDeletionOf(tenant)))).toMatchObject([
      { value: { what: "dataset", id } },
    ]);
  });
});
