/** A program that is written by docs/asyncapi.json alone: it uses plain NATS and JSON. */
import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { connect, type NatsConnection } from "@nats-io/transport-node";
import { ulid } from "ulid";
import { expect, inject, it } from "vitest";
import { base, clientOf, eventually, loraline, runOver, sampleRows, smallTraining } from "../line-under-test.ts";

const address = inject("line");
const line = clientOf(address);
/** As the tenant's own user, whose password `loraline up` names the file of. */
const connectToNats = () =>
  connect({
    servers: address.natsUrl,
    user: "tenant.local",
    pass: address.natsAuth["tenant.local"] ?? "",
    inboxPrefix: "_INBOX_tenant_local",
  });

/** Types of the events that come about a run. A client of another account hears nothing by itself: services speak in accounts of their own. */
function follow(nc: NatsConnection, runId: string): string[] {
  const heard: string[] = [];
  const prefix = `loraline.local.run.${runId}.`;
  void (async () => {
    for await (const { subject } of nc.subscribe(`${prefix}>`)) heard.push(subject.slice(prefix.length));
  })();
  return heard;
}

it("asks for a run with a message, without any header, and follows it", async () => {
  const rows = (await sampleRows(16)).map(({ instruction, output }) => ({ prompt: instruction, completion: output }));
  const { id } = await line.openai.files.create({ file: new File([JSON.stringify(rows)], "pairs.json"), purpose: "fine-tune" });
  const nc = await connectToNats();
  try {
    // Sent as a request, so that the stream answers when it has stored the message.
    const served = ulid();
    const heard = follow(nc, served);
    const spec = { base, adapter: "from-nats", dataset: id.replace("file-", ""), ...smallTraining };
    await nc.request(`loraline.local.run.${served}.requested.v1`, JSON.stringify({ spec }));
    const unknown = ulid();
    const heardOfUnknown = follow(nc, unknown);
    await nc.request(`loraline.local.run.${unknown}.requested.v1`, JSON.stringify({ spec: { ...spec, dataset: ulid() } }));

    expect(await runOver(line, unknown)).toMatchObject({ phase: "rejected", error: { code: "DATASET_UNKNOWN", param: "dataset" } });
    expect(await runOver(line, served)).toMatchObject({ phase: "served", served: { version: 1 }, error: null });
    await eventually("run.served is heard", 120_000, async () => heard.includes("served.v1") || undefined);
    expect(heard).toEqual(expect.arrayContaining(["requested.v1", "tokenized.v1", "started.v1", "progress.v1", "trained.v1"]));
    expect(heardOfUnknown).toContain("rejected.v1");
  } finally {
    await nc.close();
  }
});

it("puts a message that breaks the contract aside, with its reason, and goes on", async () => {
  const nc = await connectToNats();
  const runId = ulid();
  try {
    const heard = follow(nc, runId);
    await nc.request(`loraline.local.run.${runId}.requested.v1`, JSON.stringify({ spec: { base, adapter: "No Such Name!" } }));
    await eventually("the refusal is heard", 120_000, async () => heard.includes("command-refused.v1") || undefined);
  } finally {
    await nc.close();
  }
  const letter = await eventually("a failed message", 120_000, async () =>
    (await line.listFailedMessages()).data.find(({ subject, durable }) => subject.includes(runId) && durable === "door-local"),
  );
  expect(letter.message).toContain("spec.adapter");

  const seq = String(letter.seq);
  expect((await loraline(address, ["dlq", "ls"])).out).toMatch(new RegExp(`^${seq} +door-local .*spec\\.adapter`, "m"));
  expect(JSON.parse((await loraline(address, ["dlq", "show", seq])).out)).toEqual(letter);
  expect(await loraline(address, ["dlq", "redrive", seq])).toMatchObject({ code: 0, out: expect.stringContaining(runId) });
  expect((await loraline(address, ["dlq", "show", seq])).code, "it went back to its stream").toBe(4);
});

it("is refused, as the engine does, without the password that only the owner of the state directory can read", async () => {
  await expect(connect({ servers: address.natsUrl, reconnect: false })).rejects.toThrow(/authorization/i);
  const { engines } = JSON.parse(await readFile(join(address.stateDir, "line.json"), "utf8")) as { engines: { url: string }[] };
  const models = (key: string) => fetch(`${engines[0]?.url}/v1/models`, { headers: { authorization: `Bearer ${key}` } });
  await eventually("the engine answers", 180_000, async () => (await models("guessed").catch(() => undefined)) !== undefined || undefined);
  expect((await models("guessed")).status).toBe(401);
  expect((await models((await readFile(join(address.stateDir, "engine-key"), "utf8")).trim())).status).toBe(200);
  for (const file of ["nats-auth", "engine-key", "api-key"]) expect((await stat(join(address.stateDir, file))).mode & 0o077, file).toBe(0);
});
