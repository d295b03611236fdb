import { appendFile, mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, expect, test } from "vitest";
import { createLog, createTelemetry, readSpans, traceIdOf } from "./index.ts";

const dirs: string[] = [];
const tempDir = async (): Promise<string> => {
  const dir = await mkdtemp(join(tmpdir(), "loraline-telemetry-"));
  dirs.push(dir);
  return dir;
};
afterEach(async () => {
  for (const dir of dirs.splice(0)) await rm(dir, { recursive: true });
});

test("spans of two services that share a trace come back together, with parents, links, errors and times", async () => {
  const spansDir = await tempDir();
  const gateway = createTelemetry({ service: "gateway", spansDir });
  const train = createTelemetry({ service: "train", spansDir });
  const elsewhere = `00-${"b".repeat(32)}-${"c".repeat(16)}-01`;

  let carried: string | undefined;
  await gateway.span("POST /v1/files", { parent: null, links: [elsewhere] }, async () => {
    carried = gateway.traceparent();
  });
  await expect(
    train.span("process", { parent: carried, attributes: { attempt: 1 } }, async () => {
      train.record("load_base", { startMs: 1_000_000, endMs: 1_000_250 });
      throw new Error("broke");
    }),
  ).rejects.toThrow("broke");
  await gateway[Symbol.asyncDispose]();
  await train[Symbol.asyncDispose]();

  const traceId = traceIdOf(carried)!;
  await appendFile(join(spansDir, `${traceId}.jsonl`), '{"traceId": "cut by a kill'); // the last line of a killed process
  const spans = await readSpans(spansDir, traceId);
  expect(spans.map(({ service, name, status }) => [service, name, status])).toEqual([
    ["train", "load_base", "ok"],
    ["gateway", "POST /v1/files", "ok"],
    ["train", "process", "error"],
  ]);
  const [phase, upload, processed] = spans;
  expect(phase).toMatchObject({ startMs: 1_000_000, durationMs: 250, parentSpanId: processed!.spanId });
  expect(upload).toMatchObject({ parentSpanId: null, links: [{ traceId: "b".repeat(32), spanId: "c".repeat(16) }] });
  expect(processed).toMatchObject({ parentSpanId: upload!.spanId, attributes: { attempt: 1, "error.message": "broke" } });
});

test("what a tenant sent fills no trace, whatever attribute or error it is in", async () => {
  const spansDir = await tempDir();
  const telemetry = createTelemetry({ service: "gateway", spansDir });
  const long = "x".repeat(1_000_000);
  const traceId = "e".repeat(32);
  const parent = `00-${traceId}-${"c".repeat(16)}-01`;
  const asked = telemetry.span("ask", { parent, attributes: { model: long } }, () => Promise.reject(new Error(long)));
  await expect(asked).rejects.toThrow("xxx");
  telemetry.record("read", { parent, startMs: 1, endMs: 2, error: long });
  await telemetry[Symbol.asyncDispose]();
  const spans = await readSpans(spansDir, traceId);
  expect(spans.map(({ name }) => name)).toEqual(["read", "ask"]);
  expect(JSON.stringify(spans).length).toBeLessThan(20_000);
});

test("a trace that is not there, or a name that is no trace id, is empty", async () => {
  const spansDir = await tempDir();
  expect(await readSpans(spansDir, "a".repeat(32))).toEqual([]);
  expect(await readSpans(spansDir, "../../etc/passwd")).toEqual([]);
});

test("log lines carry the active trace", async () => {
  const lines: string[] = [];
  const log = createLog({ service: "ingest", destination: { write: (line: string) => void lines.push(line) } });
  const telemetry = createTelemetry({ service: "ingest" });
  await telemetry.span("work", { parent: `00-${"d".repeat(32)}-${"e".repeat(16)}-01` }, async () => {
    log.child({ runId: "R" }).info("inside");
  });
  log.info("outside");
  expect(lines.map((line) => JSON.parse(line) as object)).toEqual([
    expect.objectContaining({ service: "ingest", runId: "R", trace_id: "d".repeat(32), msg: "inside" }),
    expect.not.objectContaining({ trace_id: expect.anything() }),
  ]);
});

test("spans go to an OTLP endpoint when one is set", async () => {
  const received: { path: string | undefined; body: string }[] = [];
  const collector = createServer((request, response) => {
    let body = "";
    request.setEncoding("utf8").on("data", (chunk: string) => (body += chunk));
    request.on("end", () => {
      received.push({ path: request.url, body });
      response.end("{}");
    });
  });
  await new Promise<void>((resolve) => collector.listen(0, "127.0.0.1", resolve));
  const { port } = collector.address() as AddressInfo;
  const telemetry = createTelemetry({ service: "gateway", otlpEndpoint: `http://127.0.0.1:${port}/` });
  await telemetry.span("POST /v1/files", { parent: `00-${"f".repeat(32)}-${"e".repeat(16)}-01` }, async () => {});
  await telemetry[Symbol.asyncDispose]();
  await new Promise((resolve) => collector.close(resolve));
  expect(received.map(({ path }) => path)).toEqual(["/v1/traces"]);
  for (const part of ["f".repeat(32), "POST /v1/files", "gateway"]) expect(received[0]?.body).toContain(part);
});
