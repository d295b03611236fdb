import { buckets, consumers, events, filterFor } from "@loraline/contracts";
import { createHealth, createLog, createTelemetry, natsFull, type SpanSink } from "@loraline/runtime";
import { spawnNatsServer } from "@loraline/testkit";
import { DiscardPolicy, jetstream, jetstreamManager } from "@nats-io/jetstream";
import { ulid } from "ulid";
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { connectFromEnv, connectService, leave } from "./connect.ts";
import { createBus, ensureStreams, readKeptSpans, streamsInPlace } from "./index.ts";

const log = createLog({ service: "test", level: "silent" });
const noSpans = () => {};

it("a service waits for NATS, then for its streams, says so, and follows the connection", async () => {
  await using server = await spawnNatsServer();
  const { url } = server;
  await server.kill();
  await using health = await createHealth();
  health.started();
  const connecting = connectService({ NATS_URL: url }, "test", { log, health, keepSpans: noSpans, stopping: new AbortController().signal });
  await expect.poll(() => health.problems()).toEqual([expect.stringContaining(`cannot reach NATS at ${url}`)]);
  await server.start();
  await expect.poll(() => health.problems(), { timeout: 60_000 }).toEqual([expect.stringContaining("there are no streams on")]);
  const other = await server.connect();
  await ensureStreams(other);
  const nc = await connecting;
  expect(health.problems()).toEqual([]);
  expect(await streamsInPlace(nc)).toBeUndefined();

  await server.kill();
  await expect.poll(() => health.problems()).toEqual([expect.stringContaining("is lost; connecting again")]);
  await server.start();
  await expect.poll(() => health.problems(), { timeout: 60_000 }).toEqual([]);
  await Promise.all([nc.close(), other.close()]);
});

it("a history that is full refuses what is new and loses nothing; a larger limit lets it go on, a smaller one takes nothing away", async () => {
  await using server = await spawnNatsServer();
  const nc = await server.connect();
  const mib = 1024 ** 2;
  const bus = createBus({ nc, log, telemetry: createTelemetry({ service: "test" }), source: "test" });
  const blob = { kind: "raw", digest: `sha256:${"a".repeat(64)}`, size: 3 } as const;
  const receive = () => bus.publish(events.datasetReceived, { tenant: "acme", id: ulid() }, { blob, filename: "a".repeat(500) });
  /** Tells of datasets until the stream takes no more. @returns the error. */
  const fill = async (): Promise<unknown> => {
    for (;;) {
      const results = await Promise.allSettled(Array.from({ length: 200 }, receive));
      const failed = results.find(({ status }) => status === "rejected");
      if (failed?.status === "rejected") return failed.reason;
    }
  };
  const stateOf = async () => (await (await jetstreamManager(nc)).streams.info("DATASETS")).state;

  await ensureStreams(nc);
  // As an earlier version made it.
  await (await jetstreamManager(nc)).streams.update("DATASETS", { discard: DiscardPolicy.Old });
  await receive();
  await ensureStreams(nc, { limits: { DATASETS: mib } });
  expect(natsFull(await fill())).toMatch(/maximum bytes/);
  const full = await stateOf();
  expect(full).toMatchObject({ first_seq: 1, messages: full.last_seq });
  expect(full.bytes).toBeLessThanOrEqual(mib);

  await ensureStreams(nc, { limits: { DATASETS: 2 * mib } });
  await fill();
  const fuller = await stateOf();
  expect(fuller.bytes).toBeGreaterThan(1.9 * mib);
  await ensureStreams(nc, { limits: { DATASETS: mib } });
  expect(await stateOf()).toMatchObject({ first_seq: 1, messages: fuller.messages, bytes: fuller.bytes });
  await expect(receive()).rejects.toSatisfy((error) => natsFull(error) !== undefined);
  await ensureStreams(nc);
  expect((await receive()).duplicate).toBe(false);
  await nc.close();
});

it("consumers of an earlier version are those of this one afterwards, and have lost nothing", async () => {
  await using server = await spawnNatsServer();
  const nc = await server.connect();
  await ensureStreams(nc);
  const jsm = await jetstreamManager(nc);
  const changed = [consumers.projectorProgress, consumers.serveVersionWanted, consumers.projectorRuns];
  for (const { stream, durable, events } of changed) {
    const { config } = await jsm.consumers.info(stream.name, durable);
    const subject = filterFor(events[0]);
    await jsm.consumers.update(stream.name, durable, { filter_subjects: [subject], max_ack_pending: 7 });
    await jetstream(nc).publish(subject.replaceAll("*", "x"), "{}");
    await ensureStreams(nc);
    const after = await jsm.consumers.info(stream.name, durable);
    expect(after.config).toEqual(config);
    expect(after.num_pending).toBe(1);
  }
  await nc.close();
});

it("a bucket that is full takes no more, and says which one it is; a limit that NATS has no room for is left out, and told", async () => {
  await using server = await spawnNatsServer();
  const nc = await server.connect();
  const mib = 1024 ** 2;
  expect(await ensureStreams(nc, { limits: { KV_leases: mib } })).toEqual({ unlimited: [] });
  const bus = createBus({ nc, log, telemetry: createTelemetry({ service: "test" }), source: "test" });
  const leases = await bus.bucket(buckets.leases);
  const fill = async (): Promise<unknown> => {
    for (let n = 0; ; n++) {
      try {
        await leases.put(`work-${n}`, { holder: "h".repeat(50_000) });
      } catch (error) {
        return error;
      }
    }
  };
  expect(await fill()).toMatchObject({
    code: "STORE_FULL",
    message: expect.stringMatching(/^KV bucket leases is full .* raise its limit/),
  });
  await expect(leases.change("work-0", () => ({ holder: "h".repeat(50_000) }))).rejects.toMatchObject({ code: "STORE_FULL" });
  await leases.delete("work-1");
  expect(await ensureStreams(nc, { limits: { KV_leases: 2 * mib } })).toEqual({ unlimited: [] });
  await leases.change("work-0", () => ({ holder: "another" }));
  expect(await ensureStreams(nc, { limits: { KV_leases: 2 ** 50, KV_keys: mib } })).toEqual({ unlimited: ["leases"] });
  const limitOf = async (bucket: string) => (await (await jetstreamManager(nc)).streams.info(`KV_${bucket}`)).config.max_bytes;
  expect([await limitOf("leases"), await limitOf("keys")]).toEqual([-1, mib]);
  await nc.close();
});

it("responses that are kept as a convenience lose their oldest when their bucket is full, and take what is new", async () => {
  await using server = await spawnNatsServer();
  const nc = await server.connect();
  // As one from before, which refused.
  await ensureStreams(nc);
  await ensureStreams(nc, { limits: { KV_responses: 1024 ** 2 } });
  const bus = createBus({ nc, log, telemetry: createTelemetry({ service: "test" }), source: "test" });
  const responses = await bus.bucket(buckets.responses);
  const value = { model: "m", sticky: "x".repeat(100_000), input: [], response: { id: "resp_1", output: [] } };
  const keys = Array.from({ length: 20 }, (_, n) => `acme.${n}`);
  for (const key of keys) await responses.put(key, value);
  expect(await responses.get("acme.0")).toBeUndefined();
  const kept = await responses.sizes("acme.*");
  expect(kept.map(({ key }) => key)).toEqual(keys.slice(-kept.length));
  expect(kept.length).toBeGreaterThan(5);
  await responses.erase("acme.19");
  expect(await responses.get("acme.19")).toBeUndefined();
  await nc.close();
});

it("NATS_URL may name several servers: one that answers is enough, and the message names all where none does", async () => {
  await using away = await spawnNatsServer();
  await using server = await spawnNatsServer();
  await away.kill();
  for (const urls of [`${away.url},${server.url}`, `${server.url}, ${away.url}`]) {
    const nc = await connectFromEnv({ NATS_URL: urls }, "test");
    await nc.flush();
    await nc.close();
  }
  await server.kill();
  await expect(connectFromEnv({ NATS_URL: `${away.url},${server.url}` }, "test")).rejects.toMatchObject({
    code: "NATS_UNREACHABLE",
    message: expect.stringContaining(`${away.url}, ${server.url}`),
  });
});

it("a stop ends the wait", async () => {
  await using server = await spawnNatsServer();
  await using health = await createHealth();
  const stopping = new AbortController();
  const env = { NATS_URL: server.url };
  const waiting = connectService(env, "test", { log, health, keepSpans: noSpans, stopping: stopping.signal });
  await expect.poll(() => health.problems()).toContainEqual(expect.stringContaining("there are no streams"));
  stopping.abort();
  await expect(waiting).rejects.toMatchObject({ code: "STOPPED", message: expect.stringContaining("there are no streams") });
});

it("leaving is no failure, also while the server is away, and sends what was said before", async () => {
  await using server = await spawnNatsServer();
  const [nc, other] = await Promise.all([server.connect(), server.connect()]);
  const heard = other.subscribe("said");
  await other.flush();
  nc.publish("said", "goodbye");
  await leave(nc);
  for await (const message of heard) {
    expect(message.string()).toBe("goodbye");
    break;
  }
  const status = other.status();
  await server.kill();
  for await (const { type } of status) if (type === "disconnect") break;
  await leave(other);
  expect(other.isClosed()).toBe(true);
});

it("spans that ended before NATS was there are kept too, and a trace is read whole", async () => {
  await using server = await spawnNatsServer();
  const other = await server.connect();
  await ensureStreams(other);
  await using health = await createHealth();
  const keeping = Promise.withResolvers<SpanSink>();
  const telemetry = createTelemetry({ service: "test", keep: async (traceId, spans) => (await keeping.promise)(traceId, spans) });
  let traceId = "";
  await telemetry.span("whole", {}, async (span) => {
    traceId = span.spanContext().traceId;
    for (let n = 0; n < 250; n++) telemetry.record(`part ${n}`, { startMs: n, endMs: n + 1 });
  });
  const nc = await connectService({ NATS_URL: server.url }, "test", {
    log,
    health,
    keepSpans: keeping.resolve,
    stopping: new AbortController().signal,
  });
  await telemetry.flush();
  const spans = await readKeptSpans(nc, traceId);
  expect(spans.map(({ name }) => name)).toEqual([...Array.from({ length: 250 }, (_, n) => `part ${n}`), "whole"]);
  expect(spans[0]).toMatchObject({ service: "test", traceId, parentSpanId: spans.at(-1)?.spanId });
  expect(await readKeptSpans(nc, "0".repeat(32))).toEqual([]);
  expect(await readKeptSpans(nc, "../runs")).toEqual([]);
  await Promise.all([nc.close(), other.close()]);
  await telemetry[Symbol.asyncDispose]();
});

describe("TLS, with an authority of one's own", () => {
  let dir: string;
  const at = (name: string): string => join(dir, name);
  const openssl = (...args: string[]) => execFileSync("openssl", args, { cwd: dir, stdio: "ignore" });
  /** As cert-manager makes it: a certificate for servers and, towards each other, clients. */
  const certificate = (name: string, host: string): void => {
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", `${name}.key`, "-out", `${name}.csr`, "-subj", `/CN=${name}`);
    writeFileSync(at(`${name}.ext`), `subjectAltName=${host}\nextendedKeyUsage=serverAuth,clientAuth\n`);
    const by = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2"];
    openssl("x509", "-req", "-in", `${name}.csr`, ...by, "-out", `${name}.crt`, "-extfile", `${name}.ext`);
  };
  const tlsArgs = (name: string) => ["--tls", "--tlscert", at(`${name}.crt`), "--tlskey", at(`${name}.key`), "--tlscacert", at("ca.crt")];
  beforeAll(() => {
    dir = mkdtempSync(join(tmpdir(), "loraline-tls-"));
    for (const ca of ["ca", "other"])
      openssl(
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        `${ca}.key`,
        "-out",
        `${ca}.crt`,
        "-days",
        "2",
        "-subj",
        `/CN=${ca}`,
      );
    certificate("server", "IP:127.0.0.1,DNS:localhost");
    certificate("elsewhere", "DNS:elsewhere");
  }, 60_000);
  afterAll(() => rmSync(dir, { recursive: true, force: true }));

  it("a service connects with the authority, and again after the server was away", async () => {
    await using server = await spawnNatsServer({ args: tlsArgs("server") });
    const env = { NATS_URL: server.url.replace("nats://", "tls://"), NATS_CA_FILE: at("ca.crt") };
    const nc = await connectFromEnv(env, "test");
    await ensureStreams(nc);
    expect(await streamsInPlace(nc)).toBeUndefined();
    await server.kill();
    await server.start();
    await expect.poll(() => nc.rtt().catch(() => 0), { timeout: 60_000 }).toBeGreaterThan(0);
    await nc.close();
  });

  it.each<[string, string, object, RegExp]>([
    ["a server of an authority that is not trusted", "server", { NATS_CA_FILE: "other.crt" }, /certificate.*Set NATS_CA_FILE/],
    ["a server of no usual authority, without a file", "server", {}, /certificate.*Set NATS_CA_FILE/],
    ["a server whose certificate is for another host", "elsewhere", { NATS_CA_FILE: "ca.crt" }, /altnames.*must name this host/],
  ])("there is no connection to %s", async (_, name, env: { NATS_CA_FILE?: string }, why) => {
    await using server = await spawnNatsServer({ args: tlsArgs(name) });
    const settings = { NATS_URL: server.url.replace("nats://", "tls://"), ...(env.NATS_CA_FILE && { NATS_CA_FILE: at(env.NATS_CA_FILE) }) };
    await expect(connectFromEnv(settings, "test")).rejects.toMatchObject({
      code: "NATS_UNREACHABLE",
      message: expect.stringMatching(why),
    });
  });

  it.each([{ NATS_CA_FILE: "ca.crt" }, {}])("nor to one without TLS, where TLS is asked for", async (env: { NATS_CA_FILE?: string }) => {
    await using server = await spawnNatsServer();
    const settings =
      env.NATS_CA_FILE === undefined
        ? { NATS_URL: server.url.replace("nats://", "tls://") }
        : { NATS_URL: server.url, NATS_CA_FILE: at(env.NATS_CA_FILE) };
    await expect(connectFromEnv(settings, "test")).rejects.toMatchObject({
      message: expect.stringMatching(/give the server a certificate/),
    });
  });
});
