/** Imports through the real service and real NATS, from a hub and a web server on this machine. */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer, type RequestListener } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { type Bus, createBus, ensureStreams } from "@loraline/bus";
import {
  buckets,
  datasetDeleted,
  datasetImportRequested,
  datasetIngested,
  datasetManifest,
  datasetProgress,
  datasetReceived,
  datasetRejected,
  datasetReport,
  datasetWaiting,
  foldDataset,
} from "@loraline/contracts";
import { blobOfPicture, createJetStreamObjects, getBytes, getJson, type Objects, readPictureTable } from "@loraline/objects";
import { createLog, createTelemetry } from "@loraline/runtime";
import { test as base } from "@loraline/testkit";
import { ulid } from "ulid";
import { describe, expect, vi } from "vitest";
import { createIngestService } from "./service.ts";
import type { ImportSettings } from "./on-import-requested.ts";

const log = createLog({ service: "ingest", level: "silent" });
const telemetry = createTelemetry({ service: "ingest" });

const test = base
  .extend("bus", async ({ nc }) => {
    await ensureStreams(nc);
    return createBus({ nc, log, telemetry, source: "test" });
  })
  .extend("objects", async ({ nc, bus }) => {
    expect(bus).toBeDefined();
    return createJetStreamObjects(nc);
  });

const row = (n: number): string => `${JSON.stringify({ question: `question ${n}`, answer: `answer ${n}` })}\n`;
const rows = (from: number, to: number): string => Array.from({ length: to - from }, (_, n) => row(from + n)).join("");
const sha256 = (text: string): string => createHash("sha256").update(text).digest("hex");
const commit = "c".repeat(40);

/** Files by path, under a hub's addresses for `acme/pirates` and as they are below /files. */
async function serve(files: Record<string, string | Buffer>, special: Record<string, RequestListener> = {}) {
  const asked: string[] = [];
  const server = createServer((request, response) => {
    const url = request.url ?? "";
    asked.push(url);
    const own = special[url];
    if (own !== undefined) own(request, response);
    else if (url === "/api/datasets/acme/pirates/revision/main") response.end(JSON.stringify({ sha: commit }));
    else if (url.startsWith(`/api/datasets/acme/pirates/tree/${commit}`)) {
      const list = Object.entries(files).map(([path, content]) => ({
        type: "file",
        path,
        size: content.length,
        ...(path.endsWith(".bad.jsonl")
          ? { lfs: { oid: "0".repeat(64) } }
          : typeof content === "string"
            ? { lfs: { oid: sha256(content) } }
            : {}),
      }));
      response.end(JSON.stringify(list));
    } else {
      const path = decodeURIComponent(
        (url.split("?")[0] as string).replace(`/datasets/acme/pirates/resolve/${commit}/`, "").replace("/files/", ""),
      );
      const content = files[path];
      if (content === undefined) response.writeHead(404).end();
      else if (url.startsWith("/datasets/")) response.writeHead(302, { location: `/files/${encodeURIComponent(path)}` }).end();
      else response.end(content);
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  const url = `http://127.0.0.1:${port}`;
  return {
    url,
    asked,
    imports: { allow: [`127.0.0.1:${port}`], hubEndpoint: url } satisfies Partial<ImportSettings>,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

interface Line {
  bus: Bus;
  objects: Objects;
  tenant: string;
}

async function request({ bus, tenant }: Line, source: Record<string, unknown>): Promise<string> {
  const id = ulid();
  await bus.publish(datasetImportRequested, { tenant, id }, { source: source as never, by: "test" });
  return id;
}
/** How the import ended: the first of the two events that comes. */
const outcome = ({ bus, tenant }: Line, id: string) =>
  vi.waitFor(
    async () => {
      const at = { tenant, id };
      const [ingested, rejected] = await Promise.all([bus.last(datasetIngested, at), bus.last(datasetRejected, at)]);
      if (ingested !== undefined) return { records: ingested.data.records, rejections: ingested.data.rejections };
      if (rejected !== undefined) return { code: rejected.data.code, message: rejected.data.message };
      throw new Error("not yet");
    },
    { timeout: 30_000, interval: 50 },
  );

describe("an import", () => {
  test("by URL becomes a dataset as an upload does", async ({ bus, objects, tenant }) => {
    const line = { bus, objects, tenant };
    await using web = await serve({ "pirates 海盗.jsonl.gz": gzipSync(rows(0, 20)) });
    await using service = await createIngestService({ bus, objects, telemetry, imports: web.imports });
    expect(service).toBeDefined();
    const id = await request(line, { url: `${web.url}/files/${encodeURIComponent("pirates 海盗.jsonl.gz")}?token=secret` });
    expect(await outcome(line, id)).toEqual({ records: 20, rejections: 0 });
    const received = await bus.last(datasetReceived, { tenant, id });
    expect(received?.data).toMatchObject({ filename: "pirates 海盗.jsonl.gz", by: "test" });
    expect(await getBytes(objects, tenant, received?.data.blob as never)).toEqual(gzipSync(rows(0, 20)));
    expect(await bus.history([datasetReceived, datasetRejected], { tenant, id })).toHaveLength(1);
  });

  test("by hub id takes the train split, all shards of it, at one commit", async ({ bus, objects, tenant }) => {
    const line = { bus, objects, tenant };
    await using hub = await serve({
      "README.md": "# pirates",
      "data/train-00001-of-00002.jsonl": `${rows(10, 15)}not json\n`,
      "data/train-00000-of-00002.jsonl": rows(0, 10),
      "data/test-00000-of-00001.jsonl": rows(50, 60),
    });
    await using service = await createIngestService({ bus, objects, telemetry, imports: hub.imports, tellEveryMs: 0 });
    expect(service).toBeDefined();
    const id = await request(line, { hub: "acme/pirates" });
    expect(await outcome(line, id)).toEqual({ records: 15, rejections: 1 });
    const fetched = (await bus.history([datasetProgress], { tenant, id })).filter(({ data }) => data.stage === "fetch");
    const total = `${rows(10, 15)}not json\n${rows(0, 10)}`.length;
    expect(fetched.length).toBeGreaterThan(0);
    expect(fetched.every(({ data }) => data.total === total && data.done > 0 && data.done <= total)).toBe(true);
    const ingested = await bus.last(datasetIngested, { tenant, id });
    const report = await getJson(objects, tenant, ingested?.data.report as never, datasetReport);
    expect(report.firstRejections).toMatchObject([
      { line: 16, code: "NOT_JSON", message: expect.stringMatching(/^train-00001-of-00002\.jsonl, line 6: not JSON/) as string },
    ]);
    expect(hub.asked).toContain(`/datasets/acme/pirates/resolve/${commit}/data/train-00001-of-00002.jsonl`);
    expect(await outcome(line, await request(line, { hub: "acme/pirates", split: "test" }))).toEqual({ records: 10, rejections: 0 });
    expect(await outcome(line, await request(line, { hub: "acme/pirates", file: "data/test-00000-of-00001.jsonl" }))).toMatchObject({
      records: 10,
    });
  });

  test("that may not or cannot be fetched is a rejected dataset with code and remedy", async ({ bus, objects, tenant }) => {
    const line = { bus, objects, tenant };
    await using web = await serve(
      { "a.jsonl": rows(0, 3), "b.jsonl": rows(0, 3), "c.bad.jsonl": rows(0, 3), "page.html": "<!DOCTYPE html><html></html>" },
      {
        "/inward": (_, response) => void response.writeHead(302, { location: "http://169.254.169.254/latest/meta-data/" }).end(),
        "/endless": (_, response) => {
          const timer = setInterval(() => response.write("x".repeat(10_000)), 2);
          response.on("close", () => clearInterval(timer));
        },
      },
    );
    await using service = await createIngestService({ bus, objects, telemetry, imports: { ...web.imports, maxBytes: 50_000 } });
    expect(service).toBeDefined();
    const cases: [Record<string, string>, string, RegExp][] = [
      [{ url: "https://127.0.0.1/a" }, "ADDRESS_REFUSED", /loopback.*LORALINE_IMPORT_ALLOW/],
      [{ url: "http://10.0.0.1/a" }, "URL_REFUSED", /only https/],
      [{ url: "nonsense" }, "URL_INVALID", /not a URL/],
      [{ url: `${web.url}/inward` }, "URL_REFUSED", /169\.254\.169\.254\/latest\/meta-data\/ is refused: only https/],
      [{ url: `${web.url}/endless` }, "FETCH_TOO_LARGE", /larger than 50000 bytes/],
      [{ url: `${web.url}/files/gone.jsonl` }, "FETCH_REFUSED", /404: there is no such file/],
      [{ url: `${web.url}/files/page.html` }, "CONTAINER_UNSUPPORTED", /web page.*Download the file itself/],
      [{ hub: "acme/nobody" }, "HUB_NOT_FOUND", /no dataset "acme\/nobody"/],
      [{ hub: "acme/pirates" }, "HUB_FILE_AMBIGUOUS", /a\.jsonl, b\.jsonl, c\.bad\.jsonl\. Name one with `file`/],
      [{ hub: "acme/pirates", file: "x.jsonl" }, "HUB_FILE_MISSING", /no file "x\.jsonl"\. Its data files: a\.jsonl/],
      [{ hub: "acme/pirates", file: "c.bad.jsonl" }, "DIGEST_MISMATCH", /nothing was stored/],
    ];
    const asked = await Promise.all(cases.map(async ([source]) => request(line, source)));
    for (const [index, [, code, message]] of cases.entries()) {
      expect(await outcome(line, asked[index] as string)).toEqual({ code, message: expect.stringMatching(message) as string });
    }
    expect(await bus.deadLetters.list(tenant)).toEqual([]);
  });

  test("fetches the pictures of its rows, never from an internal address, and keeps each once", async ({ bus, objects, tenant }) => {
    const line = { bus, objects, tenant };
    const [red, blue] = ["red-square.png", "blue-circle.jpg"].map((name) =>
      readFileSync(join(import.meta.dirname, "../../../packages/tokens/testdata/pictures", name)),
    ) as [Buffer, Buffer];
    let busy = 0;
    await using web = await serve(
      { "red.png": red, "blue.jpg": blue, "cut.png": red.subarray(0, 60) },
      { "/files/busy.png": (_, response) => void (++busy === 1 ? response.writeHead(503).end() : response.end(blue)) },
    );
    const at = (path: string): object => ({ image_url: `${web.url}/files/${path}`, caption: "A shape." });
    const images = [at("red.png"), at("red.png"), at("blue.jpg"), at("busy.png"), at("gone.png"), at("cut.png")];
    images.push({ image_url: "http://169.254.169.254/latest/meta-data/", caption: "Secret." });
    const files = images.map((each) => `${JSON.stringify(each)}\n`).join("");
    await using service = await createIngestService({ bus, objects, telemetry, imports: web.imports });
    expect(service).toBeDefined();
    const id = ulid();
    const blob = await objects.put(tenant, "raw", files);
    await bus.publish(datasetReceived, { tenant, id }, { blob, filename: "rows.jsonl", by: "test" });
    expect(await outcome(line, id)).toEqual({ records: 4, rejections: 3 });
    expect(web.asked.filter((url) => url === "/files/red.png")).toHaveLength(1);
    const ingested = await bus.last(datasetIngested, { tenant, id });
    const report = await getJson(objects, tenant, ingested?.data.report as never, datasetReport);
    expect(report.firstRejections).toMatchObject([
      { line: 5, code: "PICTURE_UNREACHABLE", message: expect.stringMatching(/404: there is no such file/) as string },
      { line: 6, code: "PICTURE_BROKEN" },
      { line: 7, code: "PICTURE_UNREACHABLE", message: expect.stringMatching(/only https/) as string },
    ]);
    const { pictures } = await getJson(objects, tenant, ingested?.data.manifest as never, datasetManifest);
    expect(pictures).toMatchObject({ count: 2, bytes: red.length + blue.length });
    const entries = await Array.fromAsync(readPictureTable(objects, tenant, pictures?.table as never));
    for (const [entry, bytes] of entries.map((each) => [each, each.media_type === "image/png" ? red : blue] as const))
      expect(await getBytes(objects, tenant, blobOfPicture(entry))).toEqual(bytes);
  });

  test("whose pictures are more than it may store is refused", async ({ bus, objects, tenant }) => {
    const line = { bus, objects, tenant };
    const red = readFileSync(join(import.meta.dirname, "../../../packages/tokens/testdata/pictures/red-square.png"));
    await using web = await serve({ "red.png": red });
    await using service = await createIngestService({ bus, objects, telemetry, imports: { ...web.imports, maxBytes: 50 } });
    expect(service).toBeDefined();
    const id = ulid();
    const blob = await objects.put(tenant, "raw", `${JSON.stringify({ image_url: `${web.url}/files/red.png`, caption: "A shape." })}\n`);
    await bus.publish(datasetReceived, { tenant, id }, { blob, filename: "rows.jsonl", by: "test" });
    expect(await outcome(line, id)).toMatchObject({ code: "QUOTA_STORAGE" });
  });

  test("tries again while the server is overloaded, and leaves alone what was deleted meanwhile", async ({ bus, objects, tenant }) => {
    const line = { bus, objects, tenant };
    let tries = 0;
    await using web = await serve(
      {},
      { "/busy": (_, response) => void (++tries === 1 ? response.writeHead(503).end() : response.end(rows(0, 2))) },
    );
    const deleted = ulid();
    await bus.publish(datasetImportRequested, { tenant, id: deleted }, { source: { url: `${web.url}/gone` } });
    await bus.publish(datasetDeleted, { tenant, id: deleted }, {});
    await using service = await createIngestService({ bus, objects, telemetry, imports: web.imports });
    expect(service).toBeDefined();
    expect(await outcome(line, await request(line, { url: `${web.url}/busy` }))).toEqual({ records: 2, rejections: 0 });
    expect(tries).toBe(2);
    expect(web.asked).not.toContain("/gone");
  });

  test("of one tenant whose servers drip takes no place from another tenant, and is told what it waits for", async ({
    bus,
    objects,
    tenant,
  }) => {
    const other = `${tenant}-other`;
    let dripping = 0;
    await using web = await serve(
      { "a.jsonl": rows(0, 3) },
      {
        "/drip": (_, response) => {
          dripping += 1;
          const timer = setInterval(() => response.write(" "), 20);
          response.on("close", () => clearInterval(timer));
        },
      },
    );
    const quotas = { default: { importsAtOnce: 2 } };
    await using service = await createIngestService({ bus, objects, telemetry, imports: { ...web.imports, atOnce: 4 }, quotas });
    expect(service).toBeDefined();
    const slow: string[] = [];
    for (let n = 0; n < 6; n++) slow.push(await request({ bus, objects, tenant }, { url: `${web.url}/drip` }));
    await expect.poll(() => dripping, { timeout: 60_000 }).toBe(2);
    const theirs = await Promise.all(
      Array.from({ length: 4 }, async () => request({ bus, objects, tenant: other }, { url: `${web.url}/files/a.jsonl` })),
    );
    for (const id of theirs) expect(await outcome({ bus, objects, tenant: other }, id)).toEqual({ records: 3, rejections: 0 });
    const reasons = async () =>
      (await Promise.all(slow.map((id) => bus.last(datasetWaiting, { tenant, id })))).map((one) => one?.data.reason);
    await expect.poll(async () => (await reasons()).filter((one) => one?.code === "QUOTA_IMPORTS").length, { timeout: 60_000 }).toBe(4);
    expect((await reasons()).find((one) => one !== undefined && one !== null)?.message).toMatch(
      /2 imports of this tenant are under way, and its quota is 2/,
    );
    expect(dripping).toBe(2);
  });

  test("pictures at servers that drip keep nobody else's uploads from being read, nor their pictures from being fetched", async ({
    bus,
    objects,
    tenant,
  }) => {
    const other = `${tenant}-other`;
    const red = readFileSync(join(import.meta.dirname, "../../../packages/tokens/testdata/pictures/red-square.png"));
    let dripping = 0;
    const drip: RequestListener = (_, response) => {
      dripping += 1;
      const timer = setInterval(() => response.write(" "), 20);
      response.on("close", () => clearInterval(timer));
    };
    await using web = await serve({ "red.png": red }, { "/drip/1": drip, "/drip/2": drip, "/drip/3": drip });
    const quotas = { default: { importsAtOnce: 2 } };
    await using service = await createIngestService({ bus, objects, telemetry, imports: { ...web.imports, atOnce: 3 }, quotas });
    expect(service).toBeDefined();
    const upload = async (of: string, text: string): Promise<string> => {
      const id = ulid();
      await bus.publish(
        datasetReceived,
        { tenant: of, id },
        { blob: await objects.put(of, "raw", text), filename: "rows.jsonl", by: "test" },
      );
      return id;
    };
    const shows = (path: string): string => `${JSON.stringify({ image_url: `${web.url}/${path}`, caption: `A shape of ${path}.` })}\n`;
    const slow: string[] = [];
    for (let n = 1; n <= 3; n++) slow.push(await upload(tenant, `${row(n)}${shows(`drip/${n}`)}`));
    await expect.poll(() => dripping, { timeout: 60_000 }).toBe(2);
    const ofOther = { bus, objects, tenant: other };
    expect(await outcome(ofOther, await upload(other, rows(0, 3)))).toEqual({ records: 3, rejections: 0 });
    expect(await outcome(ofOther, await upload(other, `${row(1)}${shows("files/red.png")}`))).toEqual({ records: 2, rejections: 0 });
    expect(await outcome({ bus, objects, tenant }, await upload(tenant, rows(0, 4)))).toEqual({ records: 4, rejections: 0 });
    const waiting = async () =>
      (await Promise.all(slow.map((id) => bus.last(datasetWaiting, { tenant, id })))).filter(
        (one) => one?.data.reason?.code === "QUOTA_IMPORTS",
      );
    await expect.poll(async () => (await waiting()).length, { timeout: 60_000 }).toBe(1);
    expect(dripping).toBe(2);
  });

  test("over the number of datasets that a tenant may have is rejected, also one that comes by NATS", async ({ bus, objects, tenant }) => {
    const line = { bus, objects, tenant };
    await using web = await serve({ "a.jsonl": rows(0, 3) });
    const quotas = { tenants: { [tenant]: { datasets: 1 } } };
    await using service = await createIngestService({ bus, objects, telemetry, imports: web.imports, quotas });
    expect(service).toBeDefined();
    const source = { url: `${web.url}/files/a.jsonl` };
    // As the projector leaves the dataset that the tenant has.
    const datasets = await bus.bucket(buckets.datasets);
    const has = ulid();
    const at = { tenant, id: has };
    const state = foldDataset(undefined, {
      type: "dataset.import-requested.v1",
      at,
      data: { source },
      time: new Date().toISOString(),
      seq: 1,
      trace: null,
    } as never);
    await datasets.put(`${tenant}.${has}`, state as never);
    expect(await outcome(line, await request(line, source))).toEqual({ records: 3, rejections: 0 });
    await datasets.put(`${tenant}.${ulid()}`, state as never);
    expect(await outcome(line, await request(line, source))).toMatchObject({
      code: "QUOTA_DATASETS",
      message: expect.stringContaining("its quota is 1") as string,
    });
    expect(
      await outcome({ ...line, tenant: `${tenant}-other` }, await request({ ...line, tenant: `${tenant}-other` }, source)),
    ).toMatchObject({ records: 3 });
  });
});
