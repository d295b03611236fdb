/** What ingest found, over HTTP. */
import { datasetReport, events } from "@loraline/contracts";
import { putJson } from "@loraline/objects";
import { test as base } from "@loraline/testkit";
import { toFile } from "openai";
import { describe, expect } from "vitest";
import { type GatewayUnderTest, startGateway } from "./gateway-under-test.ts";
import { datasetIdOf } from "./openai-ids.ts";

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
    expect(await (await get(line, "")).json()).toEqual({ data: [] });
  });
});
