/** The audit log on a real server: nobody deletes from it, pages read it backwards, and only what is proven counts as somebody's command. */
import { type Actor, adapterKeepRequested, consumers, streams, subjectFor } from "@loraline/contracts";
import { createLog, createTelemetry } from "@loraline/runtime";
import { spawnNatsServer, test } from "@loraline/testkit";
import { jetstreamManager } from "@nats-io/jetstream";
import { headers, type MsgHdrs } from "@nats-io/transport-node";
import { describe, expect } from "vitest";
import { connectBus, createBus, ensureStreams } from "../index.ts";

type Connection = Parameters<typeof createBus>[0]["nc"];
const lineSecret = "the secret of this installation";
const busOver = async (nc: Connection, secret: string | null = lineSecret) => {
  await ensureStreams(nc);
  const log = createLog({ service: "test", level: "silent" });
  return createBus({
    nc,
    log,
    telemetry: createTelemetry({ service: "test" }),
    source: "test",
    lineSecret: secret ?? undefined,
    secret: "p",
  });
};
const ann: Actor = { kind: "key", id: "0123456789abcdef", name: "ann" };
const entry = (tenant: string, id: string, over: object = {}) =>
  ({ id, tenant, action: "limit.set", target: tenant, by: ann, outcome: "accepted", details: {}, ...over }) as const;

describe("the audit log", () => {
  test("takes no deletion, no purge and no way back; an entry that is recorded again is stored once", async ({ nc, tenant }) => {
    const { audit } = await busOver(nc);
    await audit.record(entry(tenant, "1"));
    await audit.record(entry(tenant, "1"));
    const jsm = await jetstreamManager(nc);
    const { entries } = await audit.page({ tenant, limit: 10 });
    expect(entries).toMatchObject([{ id: "1", tenant, by: ann, action: "limit.set", time: expect.stringMatching(/^20/) }]);
    const seq = entries[0]?.seq ?? 0;
    await expect(jsm.streams.deleteMessage(streams.AUDIT.name, seq)).rejects.toThrow(/not permitted/);
    await expect(jsm.streams.purge(streams.AUDIT.name)).rejects.toThrow(/not permitted/);
    await expect(jsm.streams.update(streams.AUDIT.name, { deny_delete: false })).rejects.toThrow(/deny/);
    expect((await audit.page({ tenant, limit: 10 })).entries).toHaveLength(1);
  });

  test("is read page by page, one tenant's entries among many others', by a filter that may match few", async ({ nc, tenant }) => {
    const { audit } = await busOver(nc);
    const other = `${tenant}-other`;
    for (let n = 1; n <= 9; n++) {
      await audit.record(entry(tenant, String(n), n % 3 === 0 ? { target: "third" } : {}));
      await Promise.all(Array.from({ length: 20 }, (_, more) => audit.record(entry(other, `${n}/${more}`))));
    }
    const pages: string[][] = [];
    for (let before: number | undefined, more = true; more;) {
      const { entries, next } = await audit.page({ tenant, limit: 4, before });
      pages.push(entries.map(({ id }) => id));
      if (next !== null) before = next;
      more = next !== null;
    }
    expect(pages.flat()).toEqual(["9", "8", "7", "6", "5", "4", "3", "2", "1"]);
    const thirds = await audit.page({ tenant, limit: 10, matches: ({ target }) => target === "third" });
    expect(thirds.entries.map(({ id }) => id)).toEqual(["9", "6", "3"]);
    expect((await audit.page({ tenant: `${tenant}-nobody`, limit: 4 })).entries).toEqual([]);
    const everybody = await audit.page({ limit: 30 });
    expect(new Set(everybody.entries.map((each) => each.tenant))).toEqual(new Set([tenant, other]));
  });

  test("keeps what programs do all day apart from who may do what, and shows both in their order", async ({ nc, tenant }) => {
    const { audit } = await busOver(nc);
    for (let n = 1; n <= 6; n++) await audit.record(entry(tenant, String(n), n % 3 === 0 ? {} : { action: "adapter.promote" }));
    const jsm = await jetstreamManager(nc);
    const { subjects } = (await jsm.streams.info(streams.AUDIT.name, { subjects_filter: `audit.${tenant}.>` })).state;
    expect(subjects).toEqual({ [`audit.${tenant}.everyday`]: 4 });
    expect(await audit.countOfDay(tenant)).toBe(2);
    expect((await audit.page({ tenant, limit: 10 })).entries.map(({ id }) => id)).toEqual(["6", "5", "4", "3", "2", "1"]);
    const { entries, next } = await audit.page({ tenant, limit: 2 });
    expect(entries.map(({ id }) => id)).toEqual(["6", "5"]);
    expect((await audit.page({ tenant, limit: 2, before: next ?? 0 })).entries.map(({ id }) => id)).toEqual(["4", "3"]);
  });

  test("is kept for as long as the installation says", async () => {
    await using server = await spawnNatsServer();
    const nc = await connectBus({ servers: server.url, name: "test" });
    const daysOf = async () => ((await (await jetstreamManager(nc)).streams.info(streams.AUDIT.name)).config.max_age ?? 0) / 86_400e9;
    await ensureStreams(nc);
    expect(await daysOf()).toBe(400);
    await ensureStreams(nc, { auditDays: 30 });
    expect(await daysOf()).toBe(30);
    await nc.close();
  });
});

describe("a command's sender", () => {
  /** Publishes with `send`, and says who gave the command as a consumer with this secret sees it. */
  async function seen(nc: Connection, tenant: string, secret: string | null, send: () => Promise<unknown>): Promise<Actor | undefined> {
    const bus = await busOver(nc, secret);
    let who: Actor | undefined;
    const consuming = await bus.consume({
      consumer: consumers.serveAdapterCommands,
      handlers: async ({ at }, { actor }) => {
        if (at.tenant === tenant) who = actor;
      },
    });
    await send();
    await expect.poll(() => who).toBeDefined();
    await consuming[Symbol.asyncDispose]();
    return who;
  }
  const keep = { keep: 3, by: "boss" };

  test("is who the service verified that published it, and otherwise the tenant's NATS user, whatever the message says", async ({
    nc,
    tenant,
  }) => {
    const bus = await busOver(nc);
    const at = { tenant, id: "pirate" };
    const subject = subjectFor(adapterKeepRequested, at);
    const user: Actor = { kind: "nats", id: `tenant.${tenant}` };
    expect(await seen(nc, tenant, lineSecret, () => bus.publish(adapterKeepRequested, at, keep, { key: "1", actor: ann }))).toEqual(ann);
    const signed = (await (await jetstreamManager(nc)).streams.getMessage(streams.ADAPTERS.name, { last_by_subj: subject }))?.header;
    const copied = (change: (copy: MsgHdrs) => void): MsgHdrs => {
      const copy = headers();
      for (const [name, values] of signed ?? []) for (const value of values) copy.append(name, value);
      change(copy);
      return copy;
    };
    const forge = (body: object, given?: MsgHdrs) => () =>
      nc.request(subject, JSON.stringify(body), { timeout: 60_000, ...(given === undefined ? {} : { headers: given }) });

    expect(await seen(nc, tenant, lineSecret, forge(keep))).toEqual(user);
    // The proof of another's message with another body, with another id, and of another subject.
    expect(
      await seen(
        nc,
        tenant,
        lineSecret,
        forge(
          { keep: 9 },
          copied((copy) => copy.set("Nats-Msg-Id", "x")),
        ),
      ),
    ).toEqual(user);
    expect(
      await seen(
        nc,
        tenant,
        lineSecret,
        forge(
          keep,
          copied((copy) => copy.set("Nats-Msg-Id", "y")),
        ),
      ),
    ).toEqual(user);
    const actor = Buffer.from(JSON.stringify({ actor: ann, at: new Date().toISOString() })).toString("base64url");
    const invented = copied(
      (copy) => (copy.set("Nats-Msg-Id", "z"), copy.set("loraline-actor", actor), copy.set("loraline-proof", "AAAA")),
    );
    expect(await seen(nc, tenant, lineSecret, forge(keep, invented))).toEqual(user);
    // Sent again as it was, the stream drops it.
    const again = await nc.request(subject, JSON.stringify(keep), { timeout: 60_000, headers: copied(() => {}) });
    expect(again.json()).toMatchObject({ duplicate: true });
    expect(
      await seen(nc, tenant, "another installation's secret", () => bus.publish(adapterKeepRequested, at, keep, { key: "2", actor: ann })),
    ).toEqual(user);
    // A service that cannot check believes nobody.
    expect(await seen(nc, tenant, null, () => bus.publish(adapterKeepRequested, at, keep, { key: "3", actor: ann }))).toEqual({
      kind: "unverified",
      id: "",
    });
  });
});
