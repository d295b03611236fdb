/** Files that come in parts, as the official Node SDK sends them, and what is left when somebody dies or gives up. */
import { createHash } from "node:crypto";
import { buckets, events, uploadPartBytes } from "@loraline/contracts";
import { test as base } from "@loraline/testkit";
import { toFile } from "openai";
import { expect } from "vitest";
import { type GatewayUnderTest, startGateway } from "../gateway-under-test.ts";
import { datasetIdOf } from "../openai-ids.ts";

const test = base.extend("line", async ({ nc, tenant }, { onCleanup }): Promise<GatewayUnderTest> => {
  const line = await startGateway({ nc, tenant, uploadLimitBytes: 1_000_000 });
  onCleanup(() => line[Symbol.asyncDispose]());
  return line;
});

const rows = '{"prompt":"ahoy","completion":"Arr"}\n'.repeat(20);
const pieces = [rows.slice(0, 100), rows.slice(100, 333), rows.slice(333)];
const md5 = createHash("md5").update(rows).digest("hex");
const announced = { bytes: rows.length, filename: "pirate.jsonl", mime_type: "text/jsonl", purpose: "fine-tune" as const };
const sendPart = async ({ openai }: Pick<GatewayUnderTest, "openai">, id: string, text: string) =>
  (await openai.uploads.parts.create(id, { data: await toFile(Buffer.from(text), "part") })).id;
const stateOf = async ({ bus, tenant }: GatewayUnderTest, id: string) =>
  (await (await bus.bucket(buckets.uploads)).get(`${tenant}.${id.slice("upload_".length)}`))?.value;

test("parts in any order become the file, in the order that is told", async ({ line }) => {
  const upload = await line.openai.uploads.create(announced);
  expect(upload).toMatchObject({
    object: "upload",
    status: "pending",
    bytes: rows.length,
    filename: "pirate.jsonl",
    purpose: "fine-tune",
    file: null,
  });
  expect(upload.expires_at - upload.created_at).toBe(3600);
  const ids: string[] = [];
  for (const index of [2, 0, 1]) ids[index] = await sendPart(line, upload.id, pieces[index] ?? "");
  const done = await line.openai.uploads.complete(upload.id, { part_ids: ids, md5: md5.toUpperCase() });
  expect(done).toMatchObject({
    status: "completed",
    filename: "pirate.jsonl",
    file: { object: "file", bytes: rows.length, filename: "pirate.jsonl", status: "uploaded" },
  });
  const fileId = done.file?.id ?? "";
  expect(await (await line.openai.files.content(fileId)).text()).toBe(rows);
  expect((await line.openai.files.list()).data.map(({ id }) => id)).toEqual([fileId]);
  // Asked again, as a client does whose answer was lost.
  expect(await line.openai.uploads.complete(upload.id, { part_ids: ids })).toEqual(done);
  await expect(sendPart(line, upload.id, "more")).rejects.toMatchObject({ status: 400, code: "upload_ended" });
  await expect(line.openai.uploads.cancel(upload.id)).rejects.toMatchObject({ status: 400, code: "upload_ended" });
  await line.openai.files.delete(fileId);
  await expect(line.openai.uploads.complete(upload.id, { part_ids: ids })).rejects.toMatchObject({ status: 404 });
});

test("what was answered is not lost with the gateway, whenever it dies", async ({ line, nc, tenant }) => {
  const upload = await line.openai.uploads.create({ ...announced, mapping: { format: "prompt-completion" } } as never);
  const ids = [await sendPart(line, upload.id, pieces[0] ?? "")];
  await using second = await startGateway({ nc, tenant });
  ids.push(await sendPart(second, upload.id, pieces[1] ?? ""));
  // A part that was stored while nobody noted it belongs to nothing, and is sent again.
  await line.objects.put(tenant, "raw", pieces[2] ?? "");
  ids.push(await sendPart(second, upload.id, pieces[2] ?? ""));
  // It died after the file was stored and marked, and before it was told of.
  const file = await line.objects.put(tenant, "raw", rows);
  const bucket = await line.bus.bucket(buckets.uploads);
  await bucket.change(
    `${tenant}.${upload.id.slice("upload_".length)}`,
    (state) => state && { ...state, status: "completed", file, parts: [] },
  );
  const done = await second.openai.uploads.complete(upload.id, { part_ids: ids });
  expect(done).toMatchObject({ status: "completed", file: { bytes: rows.length, filename: "pirate.jsonl" } });
  const at = { tenant, id: datasetIdOf(done.file?.id ?? "") ?? "" };
  expect((await line.bus.last(events.datasetReceived, at))?.data).toMatchObject({
    mapping: { format: "prompt-completion" },
    filename: "pirate.jsonl",
  });
  // Nothing of the file is left with the upload, so deleting the file deletes it all.
  expect(await stateOf(line, upload.id)).toMatchObject({ file: null, parts: [], filename: "-" });
});

test("two who complete it at once get the same file", async ({ line }) => {
  const upload = await line.openai.uploads.create(announced);
  const part_ids = [await sendPart(line, upload.id, rows)];
  const done = await Promise.all([1, 2, 3].map(() => line.openai.uploads.complete(upload.id, { part_ids })));
  expect(new Set(done.map(({ file }) => file?.id)).size).toBe(1);
  expect((await line.openai.files.list()).data).toHaveLength(1);
});

test("a file that is not the announced one is not taken, and can be mended", async ({ line }) => {
  const { uploads } = line.openai;
  const upload = await uploads.create(announced);
  const [first = "", second = "", third = ""] = await Promise.all(pieces.map((piece) => sendPart(line, upload.id, piece)));
  const refused = (part_ids: string[], code: string, sum?: string) =>
    expect(uploads.complete(upload.id, { part_ids, ...(sum === undefined ? {} : { md5: sum }) })).rejects.toMatchObject({
      status: 400,
      code,
    });
  await refused([first, second], "upload_incomplete");
  await refused([first, second, third, third], "upload_incomplete");
  await refused([first, second, "part_01JD000000000000000000000A"], "upload_incomplete");
  await refused([first, third, second], "checksum_mismatch", md5);
  await refused([first, second, third], "invalid_body", "no sum");
  expect((await line.openai.files.list()).data).toEqual([]);
  expect((await uploads.complete(upload.id, { part_ids: [first, second, third], md5 })).status).toBe("completed");

  await expect(uploads.create({ ...announced, bytes: 1_000_001 })).rejects.toMatchObject({ status: 413, code: "file_too_large" });
  await expect(uploads.create({ ...announced, purpose: "batch" })).rejects.toMatchObject({ status: 400, param: "purpose" });
  await expect(uploads.create({ ...announced, expires_after: { anchor: "created_at", seconds: 3600 } })).rejects.toMatchObject({
    status: 400,
    param: "expires_after",
  });
  const open = await uploads.create(announced);
  await expect(sendPart(line, open.id, "")).rejects.toMatchObject({ status: 400, code: "empty_file" });
  const large = await line.fetch(`/v1/uploads/${open.id}/parts`, {
    method: "POST",
    headers: { "content-type": "multipart/form-data; boundary=x" },
    body: Buffer.alloc(uploadPartBytes + 100_000),
  });
  expect(large.status).toBe(413);
});

test("expires, is cancelled, and is nobody else's", async ({ line }) => {
  const { uploads } = line.openai;
  const upload = await uploads.create(announced);
  const part_ids = [await sendPart(line, upload.id, rows)];
  const stranger = line.clientFor(await line.keyFor(`${line.tenant}-other`));
  const attempts = [
    () => sendPart({ openai: stranger }, upload.id, rows),
    () => stranger.uploads.complete(upload.id, { part_ids }),
    () => stranger.uploads.cancel(upload.id),
  ];
  for (const attempt of attempts) await expect(attempt()).rejects.toMatchObject({ status: 404, code: "not_found" });
  // A part of one's own upload is no part of another one.
  const other = await uploads.create(announced);
  await expect(uploads.complete(other.id, { part_ids })).rejects.toMatchObject({ code: "upload_incomplete" });
  expect(await uploads.cancel(other.id)).toMatchObject({ status: "cancelled", file: null });
  await expect(uploads.complete(other.id, { part_ids })).rejects.toMatchObject({ code: "upload_ended" });

  const bucket = await line.bus.bucket(buckets.uploads);
  await bucket.change(
    `${line.tenant}.${upload.id.slice("upload_".length)}`,
    (state) => state && { ...state, expiresAt: new Date(Date.now() - 1).toISOString() },
  );
  await expect(uploads.complete(upload.id, { part_ids })).rejects.toMatchObject({
    status: 400,
    code: "upload_ended",
    message: expect.stringContaining("expired") as string,
  });
  await expect(sendPart(line, upload.id, "x")).rejects.toMatchObject({ code: "upload_ended" });
});

test("parts count towards the tenant's room in the store", async ({ nc, tenant }) => {
  await using line = await startGateway({ nc, tenant, quotas: { default: { storageBytes: 1000 } } });
  const upload = await line.openai.uploads.create({ ...announced, bytes: 1500 });
  const part = await sendPart(line, upload.id, "x".repeat(900));
  await expect(sendPart(line, upload.id, "y".repeat(600))).rejects.toMatchObject({ status: 403, code: "QUOTA_STORAGE" });
  const small = await line.openai.uploads.create({ ...announced, bytes: 900 });
  expect(await sendPart(line, small.id, "x".repeat(90))).not.toBe(part);
});

test("many small parts of many uploads take no room of other tenants in KV", async ({ line }) => {
  const upload = await line.openai.uploads.create(announced);
  const bucket = await line.bus.bucket(buckets.uploads);
  const part = {
    id: "part_01JD000000000000000000000A",
    blob: await line.objects.put(line.tenant, "raw", "x"),
    at: new Date().toISOString(),
  };
  const key = `${line.tenant}.${upload.id.slice("upload_".length)}`;
  await bucket.change(key, (state) => state && { ...state, parts: Array.from({ length: 2000 }, () => part) });
  const filled = (await bucket.get(key))?.value;
  if (filled === undefined) throw new Error("the upload is gone");
  for (let n = 0; n < 45; n++) await bucket.put(`${line.tenant}.${"0".repeat(24)}${String(n).padStart(2, "0")}`, filled);
  await expect(line.openai.uploads.create(announced)).rejects.toMatchObject({ status: 503, code: "too_many_uploads" });
  await bucket.change(key, (state) => state && { ...state, parts: Array.from({ length: 63 }, () => part) });
  await expect(sendPart(line, upload.id, "x")).rejects.toMatchObject({ status: 503, code: "too_many_uploads" });
  const other = line.clientFor(await line.keyFor(`${line.tenant}-b`));
  expect((await other.uploads.create(announced)).status).toBe("pending");
});
