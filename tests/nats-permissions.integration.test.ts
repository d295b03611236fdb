/** Loraline's programs as processes, each with its own user on a real NATS that allows only what the contracts say. */
import { spawn } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { createBus, messageId } from "@loraline/bus";
import {
  baseRef,
  buckets,
  consumers,
  datasetIngested,
  doorStream,
  doorSubject,
  filterFor,
  inboxPrefixOf,
  datasetRejected,
  natsPermissions,
  runCancelRequested,
  runRequested,
  runTokenized,
  events as allEvents,
  streams,
  subjectFor,
} from "@loraline/contracts";
import { applyStreams, natsAccounts } from "@loraline/local";
import { createJetStreamObjects } from "@loraline/objects";
import { createLog, createTelemetry } from "@loraline/runtime";
import { createSimulatedEngine } from "@loraline/testkit";
import { jetstreamManager } from "@nats-io/jetstream";
import { connect, headers, type NatsConnection } from "@nats-io/transport-node";
import { ulid } from "ulid";
import { afterAll, beforeAll, expect, it, vi } from "vitest";

const root = join(import.meta.dirname, "..");
const basesDir = join(root, ".loraline/bases");
const tenants = ["acme", "umbrella", "mallory"];
/** Of mallory: so many bytes of its events are kept. */
const historyBytes = 200_000;
const key = "ll-the-first-key-of-all-of-them";
const stack = new AsyncDisposableStack();
let url = "";
let serverLog = "";
let dir = "";

const configuration = (storeDir: string): string =>
  JSON.stringify({
    host: "127.0.0.1",
    port: -1,
    max_payload: 8 * 1024 ** 2,
    jetstream: { store_dir: storeDir },
    accounts: natsAccounts({ tenants, passwordOf: (user) => `p-${user.replace(/^tenant\./, "")}` }),
  });

const environment = (user: string): Record<string, string> => ({
  PATH: process.env.PATH ?? "",
  NATS_URL: url,
  NATS_USER: user,
  NATS_PASS: `p-${user}`,
  NATS_INBOX_PREFIX: inboxPrefixOf(user),
  LORALINE_TRACES: "nats",
  LORALINE_BASES_DIR: basesDir,
});
const as = async (user: string, pass: string, inboxPrefix: string): Promise<NatsConnection> => {
  const nc = await connect({ servers: url, user, pass, inboxPrefix });
  stack.defer(() => nc.close());
  return nc;
};

/** Starts a program; resolves with its output when it is ready. */
async function startProgram(path: string, user: string, env: Record<string, string> = {}): Promise<string[]> {
  const child = spawn(process.execPath, ["--conditions=@loraline/source", join(root, path)], {
    cwd: root,
    env: { ...environment(user), ...env },
    stdio: ["ignore", "pipe", "inherit"],
  });
  stack.defer(() => void child.kill("SIGKILL"));
  const said: string[] = [];
  for await (const line of createInterface(child.stdout)) {
    said.push(line);
    if (line.includes('"msg":"ready"')) {
      child.stdout.resume();
      return said;
    }
  }
  throw new Error(`${path} ended: ${said.join("\n")}`);
}

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "loraline-permissions-"));
  stack.defer(() => rm(dir, { recursive: true, force: true }));
  await writeFile(join(dir, "nats.conf"), configuration(join(dir, "nats")));
  const server = spawn(join(root, ".venv/bin/nats-server"), ["-c", join(dir, "nats.conf")]);
  stack.defer(() => void server.kill("SIGKILL"));
  server.stderr.on("data", (part: Buffer) => (serverLog += part.toString()));
  await vi.waitFor(() => expect(serverLog).toContain("Server is ready"), { timeout: 60_000 });
  url = `nats://127.0.0.1:${/client connections on 127\.0\.0\.1:(\d+)/.exec(serverLog)?.[1]}`;
});
afterAll(() => stack.disposeAsync());

it("every program does its work as its own user, and is refused nothing", async () => {
  await applyStreams({ natsUrl: url, tenants, env: { NATS_USER: "streams", NATS_PASS: "p-streams" } });
  const base = baseRef.parse(JSON.parse(await readFile(join(basesDir, "smollm2-135m-instruct/base.json"), "utf8")));
  const engine = stack.use(await createSimulatedEngine({ base: base.name }));
  const engines = [{ engine: "e", base, maxLoraRank: 32, maxLoras: 4, maxCpuLoras: 16, maxModelLen: 2048 }];
  await writeFile(join(dir, "engines.json"), JSON.stringify(engines));
  const [, , , , gateway] = await Promise.all([
    startProgram("services/ingest/src/main.ts", "ingest"),
    startProgram("services/tokenize/src/main.ts", "tokenize"),
    startProgram("services/serve/src/main.ts", "serve", { SERVE_ENGINES_FILE: join(dir, "engines.json"), SERVE_BASES_DIR: basesDir }),
    startProgram("services/serve/src/agent-main.ts", "agent", {
      AGENT_ENGINE: "e",
      AGENT_REPLICA: "r1",
      AGENT_BASE: base.name,
      AGENT_ENGINE_URL: engine.url,
      AGENT_PUBLIC_URL: engine.url,
      AGENT_ADAPTERS_DIR: join(dir, "adapters"),
    }),
    startProgram("services/gateway/src/main.ts", "gateway", {
      HOST: "127.0.0.1",
      PORT: "0",
      METRICS_PORT: "0",
      BOOTSTRAP_TENANT: "acme",
      NATS_TENANTS: tenants.join(","),
      LORALINE_QUOTAS: JSON.stringify({ tenants: { mallory: { historyBytes } } }),
      BOOTSTRAP_API_KEY: key,
    }),
  ]);
  const door = /"url":"([^"]+)"/.exec(gateway.join("\n"))?.[1] ?? "";
  const ask = async (
    path: string,
    init: Omit<RequestInit, "headers"> & { headers?: Record<string, string> } = {},
  ): Promise<Record<string, unknown>> => {
    const response = await fetch(`${door}${path}`, { ...init, headers: { authorization: `Bearer ${key}`, ...init.headers } });
    const body = (await response.json()) as Record<string, unknown>;
    expect(response.status, JSON.stringify(body)).toBeLessThan(300);
    return body;
  };

  const rows = Array.from({ length: 12 }, (_, i) => JSON.stringify({ prompt: `Who is number ${i}?`, completion: `Number ${i}, arr.` }));
  const form = new FormData();
  form.set("purpose", "fine-tune");
  form.set("file", new Blob([rows.join("\n")]), "rows.jsonl");
  const { id: file } = await ask("/v1/files", { method: "POST", body: form });
  await expect.poll(() => ask(`/v1/files/${String(file)}`), { timeout: 60_000 }).toMatchObject({ status: "processed" });
  const job = { model: base.name, training_file: file, suffix: "arr" };
  const headers = { "content-type": "application/json" };
  const { id } = await ask("/v1/fine_tuning/jobs", { method: "POST", headers, body: JSON.stringify(job) });
  const told = () => ask(`/v1/fine_tuning/jobs/${String(id)}/events`).then(({ data }) => JSON.stringify(data));
  await expect.poll(told, { timeout: 40_000 }).toMatch(/token/i);
  expect(await ask("/v1/models")).toMatchObject({ data: [expect.objectContaining({ id: base.name })] });
  expect(await ask("/v1/loraline/dlq")).toMatchObject({ data: [] });
  expect(serverLog.match(/.*Violation.*/g)).toBeNull();
}, 120_000);

it("what a service pulls from another account comes once", async () => {
  const jsm = await jetstreamManager(await as("streams", "p-streams", inboxPrefixOf("streams")));
  const log = createLog({ service: "test", level: "silent" });
  await using telemetry = createTelemetry({ service: "test" });
  const bus = createBus({ nc: await as("gateway", "p-gateway", inboxPrefixOf("gateway")), log, telemetry, source: "gateway" });
  // Many at once, so that some are there before they are pulled.
  await Promise.all(Array.from({ length: 20 }, () => bus.publish(runCancelRequested, { tenant: "acme", id: ulid() }, { by: "acme" })));
  for (const { stream, durable } of [consumers.projectorDatasets, consumers.projectorRuns]) {
    // Deliveries are counted from 1 on, as the stream's messages are: one that got lost on the way and was sent again shows.
    const seen = async () => {
      const { delivered, num_ack_pending, num_pending } = await jsm.consumers.info(stream.name, durable);
      return { deliveries: delivered.consumer_seq, acknowledged: delivered.consumer_seq - num_ack_pending, waiting: num_pending };
    };
    const { last_seq: stored } = (await jsm.streams.info(stream.name)).state;
    expect(stored, stream.name).toBeGreaterThan(1);
    await expect.poll(seen, { timeout: 60_000, message: durable }).toEqual({ deliveries: stored, acknowledged: stored, waiting: 0 });
  }
});

it("what is another's to say is refused", async () => {
  const said = async (user: string, subject: string): Promise<void> => {
    const nc = await as(user, user.startsWith("tenant.") ? `p-${user.slice(7)}` : `p-${user}`, inboxPrefixOf(user.replace(".", "_")));
    const errors: string[] = [];
    void (async () => {
      for await (const status of nc.status()) if (status.type === "error") errors.push(status.error.message);
    })();
    nc.publish(subject, "{}");
    await nc.flush();
    await expect.poll(() => errors.join("\n")).toContain(`"${subject}"`);
  };
  const at = { tenant: "acme", id: ulid() };
  const foreign: [string, string][] = [
    ["courier", subjectFor(runRequested, at)],
    ["agent", subjectFor(runTokenized, at)],
    ["ingest", "$KV.keys.abc"],
    ["tokenize", "$KV.adapters.acme.a"],
    ["serve", "$O.objects.C.abc"],
    ["agent", "$O.objects.M.abc"],
    ["gateway", "$JS.API.STREAM.DELETE.RUNS"],
    ["train", "$JS.API.STREAM.PURGE.RUNS"],
    ["operator", "$JS.ACK.RUNS.serve-run-trained.1"],
    ["streams", subjectFor(runRequested, at)],
    ["tenant.acme", subjectFor(runRequested, { ...at, tenant: "umbrella" })],
    ["tenant.acme", subjectFor(runTokenized, at)],
    ["tenant.acme", subjectFor(datasetIngested, at)],
    ["tenant.acme", doorSubject(subjectFor(runRequested, at))],
    ["tenant.acme", doorSubject(subjectFor(runRequested, { ...at, tenant: "umbrella" }))],
    ["tenant.acme", "$JS.ACK.DOOR_acme.door-acme.1"],
    ["tenant.acme", "$JS.API.STREAM.INFO.DOOR_umbrella"],
    ["courier", doorSubject(subjectFor(runRequested, at))],
    ["tenant.acme", "$JS.API.CONSUMER.CREATE.RUNS"],
    ["tenant.acme", "$KV.keys.abc"],
    ["tenant.acme", "audit.acme"],
    ["tenant.acme", "audit.acme.everyday"],
    ["courier", "audit.acme"],
    ["agent", "audit.acme"],
    ["gateway", "$JS.API.STREAM.PURGE.AUDIT"],
    ["serve", "$JS.API.STREAM.MSG.DELETE.AUDIT"],
  ];
  for (const [user, subject] of foreign) await said(user, subject);
});

it("serve removes what the gateway has stored", async () => {
  const [gateway, serve] = await Promise.all(
    ["gateway", "serve"].map(async (user) => createJetStreamObjects(await as(user, `p-${user}`, inboxPrefixOf(user)))),
  );
  const blob = await gateway!.put("acme", "evidence", "{}");
  await serve!.delete("acme", blob);
  expect(await gateway!.head("acme", blob)).toBeUndefined();
});

it("a tenant gives commands for itself and follows its own events, and hears nothing of others", async () => {
  const acme = await as("tenant.acme", "p-acme", "_INBOX_tenant_acme");
  const heard: string[] = [];
  void (async () => {
    for await (const { subject } of acme.subscribe("loraline.acme.>")) heard.push(subject);
  })();
  const log = createLog({ service: "test", level: "silent" });
  await using telemetry = createTelemetry({ service: "test" });
  const bus = createBus({ nc: acme, log, telemetry, source: "acme" });
  const at = { tenant: "acme", id: ulid() };
  const spec = { base: "none", adapter: "a", dataset: ulid() };
  expect((await bus.publish(runRequested, at, { spec, by: "acme" })).duplicate).toBe(false);
  await expect.poll(() => heard).toContain(subjectFor(runRequested, at));
  // What services say comes from other accounts, about this tenant and others.
  const ingest = createBus({ nc: await as("ingest", "p-ingest", inboxPrefixOf("ingest")), log, telemetry, source: "ingest" });
  const why = { code: "ALL_ROWS_REJECTED", message: "none", param: null, report: null, rejections: 0 };
  await ingest.publish(datasetRejected, { tenant: "umbrella", id: ulid() }, why);
  const ofDataset = { tenant: "acme", id: ulid() };
  await ingest.publish(datasetRejected, ofDataset, why);
  await expect.poll(() => heard).toContain(subjectFor(datasetRejected, ofDataset));
  expect(heard.filter((subject) => !subject.startsWith("loraline.acme."))).toEqual([]);

  for (const subject of [
    "loraline.>",
    filterFor(runRequested),
    "loraline.umbrella.>",
    "_INBOX.>",
    "_INBOX_gateway.>",
    "_INBOX_tenant_umbrella.>",
    "$KV.>",
    ">",
  ]) {
    const refused = Promise.withResolvers<Error | undefined>();
    acme.subscribe(subject, { callback: (error) => refused.resolve(error ?? undefined) });
    expect((await refused.promise)?.message, subject).toMatch(/permissions violation/i);
  }
});

it("a tenant makes nothing appear on any subject but its own, whichever it names for the answer", async () => {
  const acme = await as("tenant.acme", "p-acme", "_INBOX_tenant_acme");
  const streamsUser = await as("streams", "p-streams", inboxPrefixOf("streams"));
  const jsm = await jetstreamManager(streamsUser);
  /** @returns the contents of every stream: subjects with the number of their messages. */
  const everything = async (): Promise<Record<string, Record<string, number>>> => {
    const found: Record<string, Record<string, number>> = {};
    for await (const { config } of jsm.streams.list()) {
      const { state } = await jsm.streams.info(config.name, { subjects_filter: ">" });
      // Subjects that the programs write all the time by themselves.
      if (!["KV_replicas", "KV_holdings", "KV_traffic", "KV_waited", "SPANS"].includes(config.name))
        found[config.name] = state.subjects ?? {};
    }
    return found;
  };
  const idOf = (noun: string): string => ({ adapter: "pirate", chunk: "a".repeat(64) })[noun] ?? ulid();
  const targets = [
    ...Object.values(allEvents).flatMap((event) => tenants.map((tenant) => subjectFor(event, { tenant, id: idOf(event.noun) }))),
    ...Object.values(buckets).map(({ name }) => `$KV.${name}.umbrella.pirate`),
    ...Object.values(streams).flatMap(({ name }) => [`$JS.API.STREAM.PURGE.${name}`, `$JS.API.STREAM.DELETE.${name}`]),
    "$O.objects.M.abc",
    "dlq.RUNS.tokenize-run-requested.1",
    "spans.0af7651916cd43dd8448eb211c80319c",
    "audit.umbrella",
    "audit.umbrella.everyday",
    "_INBOX_gateway.x.y",
  ];
  const before = await everything();
  const own = { tenant: "acme", id: ulid() };
  for (const reply of targets) acme.publish(subjectFor(runCancelRequested, own), "{}", { reply });
  await acme.flush();
  const after = async (): Promise<Record<string, Record<string, number>>> => {
    const now = await everything();
    // The tenant's own commands, as many as it published, and copies of those that could not be processed.
    expect(now["RUNS"]?.[subjectFor(runCancelRequested, own)]).toBeGreaterThanOrEqual(targets.length);
    return now;
  };
  await vi.waitFor(after, { timeout: 60_000 });
  // Serve writes down that the tenant asked for cancellations.
  const isAcmes = (subject: string): boolean => subject.startsWith("loraline.acme.") || subject.startsWith("audit.acme");
  const ofOthers = (state: Record<string, Record<string, number>>) =>
    Object.fromEntries(
      Object.entries(state).map(([stream, subjects]) => [
        stream,
        Object.fromEntries(Object.entries(subjects).filter(([subject]) => !isAcmes(subject) && !subject.startsWith("$KV.runs.acme."))),
      ]),
    );
  expect(ofOthers(await after())).toEqual(ofOthers(before));
});

it("a tenant's client that says all it can fills its own door and its own quota, and holds up nobody", async () => {
  const [mallory, umbrella] = await Promise.all(
    ["mallory", "umbrella"].map((name) => as(`tenant.${name}`, `p-${name}`, `_INBOX_tenant_${name}`)),
  );
  const jsm = await jetstreamManager(await as("streams", "p-streams", inboxPrefixOf("streams")));
  const door = doorStream("mallory");
  const metadata = Object.fromEntries(Array.from({ length: 8 }, (_, n) => [`note-${n}`, "b".repeat(500)]));
  const requested = () => subjectFor(runRequested, { tenant: "mallory", id: ulid() });
  const body = JSON.stringify({ spec: { base: "none", adapter: "a", dataset: ulid(), metadata } });
  const answers: string[] = [];
  const say = async (subject: string, data: string | Uint8Array): Promise<void> => {
    const { data: answer } = await mallory!.request(subject, data, { timeout: 60_000 });
    const { error } = JSON.parse(new TextDecoder().decode(answer)) as { error?: { description: string } };
    answers.push(error?.description ?? "taken");
  };
  // Garbage, what is too large, and far more commands than are taken.
  await Promise.all([say(requested(), "no JSON"), say(requested(), new Uint8Array(700 * 1024))]);
  await Promise.all(Array.from({ length: 3000 }, () => say(requested(), body)));
  expect(new Set(answers)).toEqual(new Set(["taken", "message size exceeds maximum allowed", "maximum messages exceeded"]));
  const { state } = await jsm.streams.info(door.name);
  expect(state.messages).toBeLessThanOrEqual(door.maxMessages ?? 0);

  // Another tenant's command goes on meanwhile.
  const other = subjectFor(runCancelRequested, { tenant: "umbrella", id: ulid() });
  await umbrella!.request(other, "{}", { timeout: 60_000 });
  const stored = async (subjects_filter: string) => (await jsm.streams.info("RUNS", { subjects_filter })).state.subjects ?? {};
  await expect.poll(() => stored(other), { timeout: 60_000 }).toEqual({ [other]: 1 });
  expect((await jsm.streams.info(door.name)).state.messages).toBeGreaterThan(0);

  // What is over the quota becomes failed messages, of which few are kept.
  const reasons = async (): Promise<Set<string>> => {
    const { subjects = {} } = (await jsm.streams.info("DLQ", { subjects_filter: `dlq.${door.name}.>` })).state;
    const letters = await Promise.all(Object.keys(subjects).map((subject) => jsm.streams.getMessage("DLQ", { last_by_subj: subject })));
    return new Set(letters.map((letter) => letter?.header.get("Loraline-Dlq-Code") ?? ""));
  };
  await expect.poll(reasons, { timeout: 60_000 }).toEqual(new Set(["CONTRACT_VIOLATION", "QUOTA_HISTORY"]));
  const bytes = async (): Promise<number> => {
    const log = createLog({ service: "test", level: "silent" });
    await using telemetry = createTelemetry({ service: "test" });
    return await createBus({ nc: await as("gateway", "p-gateway", inboxPrefixOf("gateway")), log, telemetry, source: "test" }).eventBytes(
      "mallory",
    );
  };
  const before = Object.keys(await stored(`loraline.mallory.run.*.requested.v1`)).length;
  await expect.poll(async () => (await jsm.streams.info(door.name)).state.messages, { timeout: 60_000, interval: 500 }).toBe(0);
  expect(Object.keys(await stored(`loraline.mallory.run.*.requested.v1`)).length).toBe(before);
  expect(before * body.length).toBeLessThan(historyBytes);
  // Beside what it said itself there are answers: that the run was rejected, and why.
  expect(await bytes()).toBeLessThan(historyBytes * 1.5);
}, 120_000);

it("a service's user makes nothing appear on a subject that is not its own either, whichever it names for the answer", async () => {
  const jsm = await jetstreamManager(await as("streams", "p-streams", inboxPrefixOf("streams")));
  const at = (noun: string) => ({ tenant: "umbrella", id: { adapter: `p${ulid().toLowerCase()}`, chunk: "b".repeat(64) }[noun] ?? ulid() });
  const matches = (pattern: string, subject: string): boolean =>
    new RegExp(`^${pattern.replaceAll(".", "\\.").replaceAll("$", "\\$").replaceAll("*", "[^.]+").replace(/>$/, ".+")}$`).test(subject);
  const everySubject = async (): Promise<Set<string>> => {
    const found = new Set<string>();
    for await (const { config } of jsm.streams.list()) {
      const { state } = await jsm.streams.info(config.name, { subjects_filter: ">" });
      for (const subject of Object.keys(state.subjects ?? {})) found.add(subject);
    }
    return found;
  };
  const streamsBefore = (await jsm.streams.list().next()).length;
  for (const [user, { publish }] of Object.entries(natsPermissions.services)) {
    const nc = await as(user, `p-${user}`, inboxPrefixOf(user));
    const mark = ulid().toLowerCase();
    const targets = [
      ...Object.values(allEvents).map((event) => subjectFor(event, at(event.noun))),
      ...Object.values(buckets).map(({ name }) => `$KV.${name}.${mark}.pirate`),
      ...Object.values(streams).map(({ name }) => `$JS.API.STREAM.DELETE.${name}`),
      `$O.objects.M.${mark}`,
      `dlq.RUNS.tokenize-run-requested.umbrella.${mark}`,
    ];
    const isOwn = (subject: string): boolean => publish.allow.some((pattern) => matches(pattern, subject));
    const trace = Buffer.from(mark).toString("hex").slice(0, 32);
    for (const reply of targets) {
      // Two requests that every service may make.
      nc.publish(`spans.${trace}`, "[]", { reply });
      nc.publish("$JS.API.STREAM.INFO.DLQ", "", { reply });
    }
    await nc.flush();
    const spans = async () => (await jsm.streams.info("SPANS", { subjects_filter: `spans.${trace}` })).state.subjects?.[`spans.${trace}`];
    await expect.poll(spans, { timeout: 60_000 }).toBe(targets.length);
    const there = await everySubject();
    expect(
      targets.filter((subject) => there.has(subject) && !isOwn(subject)),
      user,
    ).toEqual([]);
    expect((await jsm.streams.list().next()).length).toBe(streamsBefore);
  }
}, 60_000);

it("a tenant that knows the ids of others' messages cannot make NATS drop them as duplicates", async () => {
  const acme = await as("tenant.acme", "p-acme", "_INBOX_tenant_acme");
  const log = createLog({ service: "test", level: "silent" });
  await using telemetry = createTelemetry({ service: "test" });
  const victim = { tenant: "umbrella", id: ulid() };
  const forged = headers();
  forged.set("Nats-Msg-Id", messageId(runCancelRequested, victim));
  await acme.request(subjectFor(runCancelRequested, { tenant: "acme", id: ulid() }), "{}", { headers: forged, timeout: 60_000 });
  const nc = await as("gateway", "p-gateway", inboxPrefixOf("gateway"));
  const bus = createBus({ nc, log, telemetry, source: "gateway", secret: "p-gateway" });
  expect(await bus.publish(runCancelRequested, victim, { by: "umbrella" })).toMatchObject({ duplicate: false });
  // A message that is really published twice is still stored once.
  expect(await bus.publish(runCancelRequested, victim, { by: "umbrella" })).toMatchObject({ duplicate: true });
});
