/** Who did what: written before it is done, by whom the gateway has verified, and read by the tenant alone. */
import { auditList, datasetDeleted } from "@loraline/contracts";
import { test as testWithNats } from "@loraline/testkit";
import { toFile } from "openai";
import { describe, expect } from "vitest";
import { createApiKey, hashApiKey, keyIdOf } from "./auth.ts";
import { adapterOf, type GatewayUnderTest, playIngested, putAdapter, startGateway } from "../gateway-under-test.ts";
import { datasetIdOf } from "../openai-ids.ts";

const asker =
  (line: GatewayUnderTest, key = line.key) =>
  async (method: string, path: string, body?: object) => {
    const response = await fetch(`${line.url}/v1/loraline/${path}`, {
      method,
      headers: { authorization: `Bearer ${key}`, ...(body === undefined ? {} : { "content-type": "application/json" }) },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    return { status: response.status, body: (await response.json()) as { error?: { code: string } } & Record<string, unknown> };
  };
const auditOf = async (line: GatewayUnderTest, query = "", key = line.key) =>
  auditList.parse((await asker(line, key)("GET", `audit${query}`)).body);

const test = testWithNats.extend("line", async ({ nc, tenant }, { onCleanup }) => {
  const line = await startGateway({ nc, tenant });
  onCleanup(() => line[Symbol.asyncDispose]());
  return line;
});

describe("the audit log", () => {
  test("has keys, limits, deleted files and redriven messages, each with the key that did it", async ({ line, nc }) => {
    const { tenant } = line;
    const ask = asker(line);
    const { id } = (await ask("POST", "keys", { name: "ci", scopes: ["infer"], models: ["pirate"] })).body as { id: string };
    await expect.poll(async () => (await ask("DELETE", `keys/${id}`)).status).toBe(200);
    expect((await ask("PUT", "limits/pirat", { requests_per_minute: 5 })).status, "a name that is nobody's").toBe(404);
    await putAdapter(line.bus, adapterOf(tenant, "pirate", []));
    await ask("PUT", "limits/pirate", { requests_per_minute: 5 });
    await ask("DELETE", "limits/pirate");
    const rows = Buffer.from('{"prompt":"my secret","completion":"b"}\n'.repeat(20));
    const file = (await line.openai.files.create({ file: await toFile(rows, "private.jsonl"), purpose: "fine-tune" })).id;
    await playIngested(line.bus, tenant, datasetIdOf(file) ?? "");
    await line.openai.files.delete(file);
    nc.publish(`loraline.${tenant}.run.01JD000000000000000000000C.requested.v1`, "not json");
    await expect.poll(async () => (await line.bus.deadLetters.list(tenant)).length).toBeGreaterThan(0);
    const seq = (await line.bus.deadLetters.list(tenant))[0]?.seq;
    expect((await ask("POST", `dlq/${seq}/redrive`)).status).toBe(200);

    const me = { kind: "key", id: keyIdOf(hashApiKey(line.key)), name: "test" };
    const { data, next } = await auditOf(line);
    expect(next).toBeNull();
    expect(data.reverse()).toMatchObject([
      { action: "key.create", target: id, details: { name: "ci", scopes: ["infer"], models: ["pirate"] } },
      { action: "key.revoke", target: id },
      { action: "limit.set", target: `${tenant}.pirate`, details: { requests_per_minute: 5 } },
      { action: "limit.remove", target: `${tenant}.pirate` },
      { action: "dataset.delete", target: datasetIdOf(file) },
      { action: "failed-message.redrive", target: String(seq), details: { code: "CONTRACT_VIOLATION" } },
    ]);
    for (const each of data) expect(each).toMatchObject({ tenant, by: me, outcome: "accepted" });
    // What users wrote is not in it: it stays when their data is deleted. Nor is anything that could be used.
    expect(JSON.stringify(data)).not.toMatch(/secret|private|ll-/);
  });

  test("shows an admin all of the tenant, others what they did themselves, and nobody another tenant's", async ({ line }) => {
    const { tenant } = line;
    const worker = await createApiKey({ bus: line.bus }, { tenant, name: "worker", scopes: ["train"], models: ["pirate"] });
    const rows = Buffer.from('{"prompt":"a","completion":"b"}\n'.repeat(20));
    const file = (await line.clientFor(worker).files.create({ file: await toFile(rows, "a.jsonl"), purpose: "fine-tune" })).id;
    await line.clientFor(worker).files.delete(file);
    await asker(line)("PUT", "limits", { requests_per_minute: 500 });
    const actions = async (key: string, query = "") => (await auditOf(line, query, key)).data.map(({ action }) => action);
    expect(await actions(line.key)).toEqual(["limit.set", "dataset.delete"]);
    expect(await actions(worker)).toEqual(["dataset.delete"]);
    expect(await actions(await line.keyFor(`${tenant}-other`))).toEqual([]);
    expect(await actions(line.key, "?action=limit.set")).toEqual(["limit.set"]);
    expect(await actions(line.key, "?by=worker")).toEqual(["dataset.delete"]);
    expect(await actions(line.key, `?target=${tenant}`)).toEqual(["limit.set"]);
    const first = await auditOf(line, "?limit=1");
    expect([first.data.length, await actions(line.key, `?limit=1&before=${first.next}`)]).toEqual([1, ["dataset.delete"]]);
    expect((await asker(line)("GET", "audit?before=x")).body.error?.code).toBe("invalid_cursor");
    expect((await asker(line)("GET", "audit?limit=1000")).body.error?.code).toBe("invalid_limit");
  });

  test("says of what was accepted and then failed that it failed", async ({ line }) => {
    const { bus } = line;
    await using broken = await startBroken(line, {
      publish: (event, ...rest) =>
        event.type === datasetDeleted.type
          ? Promise.reject(new Error("no stream answered"))
          : bus.publish(event as never, ...(rest as [never, never])),
    });
    const rows = Buffer.from('{"prompt":"a","completion":"b"}\n'.repeat(20));
    const file = (await line.openai.files.create({ file: await toFile(rows, "a.jsonl"), purpose: "fine-tune" })).id;
    expect((await broken.fetch(`/v1/files/${file}`, { method: "DELETE", headers: { authorization: `Bearer ${line.key}` } })).status).toBe(
      500,
    );
    const { data } = await auditOf(line);
    expect(data.map(({ id, outcome, code }) => [outcome, code ?? null, id.endsWith("/failed")])).toEqual([
      ["failed", "internal_error", true],
      ["accepted", null, false],
    ]);
    expect((await line.openai.files.retrieve(file)).id).toBe(file);
  });

  test("that cannot be written lets nothing be done", async ({ line }) => {
    await using broken = await startBroken(line, {
      audit: { ...line.bus.audit, record: () => Promise.reject(new Error("503 no responders")) },
    });
    const ask = asker(broken, line.key);
    const refused = { status: 503, body: { error: { code: "audit_unavailable" } } };
    expect(await ask("POST", "keys", { name: "ci" })).toMatchObject(refused);
    expect(await ask("PUT", "limits", { requests_per_minute: 5 })).toMatchObject(refused);
    const own = keyIdOf(hashApiKey(line.key));
    expect(await ask("DELETE", `keys/${own}`)).toMatchObject(refused);
    const names = async () => ((await asker(line)("GET", "keys")).body["data"] as { id: string; name: string }[]).map(({ name }) => name);
    // The broken gateway has a key of its own.
    expect(await names()).toEqual(["test", "test"]);
    expect((await asker(line)("GET", "limits")).body["data"]).toEqual([]);
  });
});

/** A second gateway of the same tenant, whose bus fails in something. */
const startBroken = (line: GatewayUnderTest, over: Partial<GatewayUnderTest["bus"]>): Promise<GatewayUnderTest> =>
  startGateway({ nc: line.nc, tenant: line.tenant, projector: false, bus: { ...line.bus, ...over } });
