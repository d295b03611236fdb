import { mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ensureStreams } from "@loraline/bus";
import { createLog, killGroup, processIdentity } from "@loraline/runtime";
import { spawnNatsServer } from "@loraline/testkit";
import { jetstream, jetstreamManager } from "@nats-io/jetstream";
import { connect } from "@nats-io/transport-node";
import { ulid } from "ulid";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { freePort } from "./free-port.ts";
import { localUser, startNats } from "./nats.ts";
import { keepPort } from "./state/state-dir.ts";

const root = join(import.meta.dirname, "../../..");
let stateDir: string;
beforeEach(async () => {
  stateDir = await mkdtemp(join(tmpdir(), "loraline-nats-"));
});
afterEach(() => rm(stateDir, { recursive: true, force: true, maxRetries: 3 }));

const start = (ends: string[], more: { nats?: string } = {}) =>
  startNats({
    stateDir,
    tenant: "acme",
    nats: join(root, ".venv/bin/nats-server"),
    env: { PATH: process.env.PATH },
    logFile: join(stateDir, "nats.log"),
    log: createLog({ service: "test", level: "silent" }),
    onEnded: ({ why }) => void ends.push(why),
    onDiskFull() {},
    onSlow: () => void ends.push("slow"),
    ...more,
  });

const childPid = async (): Promise<number> =>
  (JSON.parse(await readFile(join(stateDir, "children/nats.json"), "utf8")) as { pid: number }).pid;

it("loses nothing that was acknowledged when it is killed, and is back on the same port", async () => {
  const ends: string[] = [];
  await using nats = await start(ends);
  const nc = await nats.connect(localUser);
  await ensureStreams(nc);
  const js = jetstream(nc, { timeout: 1000 });
  const acknowledged = new Set<number>();
  let killed = false;
  // Four writers until some time after the kill; what fails in between was not acknowledged and does not count.
  await Promise.all(
    [0, 1, 2, 3].map(async (writer) => {
      for (let n = writer; acknowledged.size < 3000; n += 4) {
        await js.publish("dlq.test", String(n)).then(
          () => acknowledged.add(n),
          () => new Promise((resolve) => setTimeout(resolve, 20)),
        );
        if (acknowledged.size > 1000 && !killed) {
          killed = true;
          killGroup(await childPid());
        }
      }
    }),
  );
  expect(ends).toEqual(["SIGKILL"]);

  const jsm = await jetstreamManager(nc);
  const { state } = await jsm.streams.info("DLQ");
  const stored = new Set<number>();
  const messages = await (await js.consumers.get("DLQ")).fetch({ max_messages: state.messages, expires: 10_000 });
  for await (const message of messages) {
    stored.add(Number(message.string()));
    if (message.info.pending === 0) break;
  }
  expect([...acknowledged].filter((n) => !stored.has(n))).toEqual([]);
  await nc.close();
});

it("waits for a server that reads for half a minute what it holds, and says so", async () => {
  // Not the usual port, which a test beside this one may take meanwhile.
  await keepPort(stateDir, "nats", await freePort("127.0.0.1", []));
  const nats = join(stateDir, "slow-nats");
  await writeFile(nats, `#!/bin/sh\nsleep 25\nexec ${join(root, ".venv/bin/nats-server")} "$@"\n`, { mode: 0o755 });
  const told: string[] = [];
  await using server = await start(told, { nats });
  await (await server.connect(localUser)).close();
  expect(told).toEqual(["slow"]);
});

it("refuses who does not know a password, which only the owner of the state directory can read", async () => {
  await using nats = await start([]);
  const stranger = connect({ servers: nats.url, reconnect: false, timeout: 2000 });
  await expect(stranger).rejects.toThrow(/authorization/i);
  await expect(connect({ servers: nats.url, user: localUser, pass: "guessed", reconnect: false })).rejects.toThrow(/authorization/i);
  const modes = ["nats-auth", "nats/nats-server.conf"].map(async (file) => ((await stat(join(stateDir, file))).mode & 0o777).toString(8));
  expect(await Promise.all(modes)).toEqual(["600", "600"]);

  const users = JSON.parse(await readFile(join(stateDir, "nats-auth"), "utf8")) as Record<string, string>;
  const nc = await connect({ servers: nats.url, user: "tenant.acme", pass: users["tenant.acme"]!, inboxPrefix: "_INBOX_tenant_acme" });
  const local = await nats.connect(localUser);
  await ensureStreams(local, { tenants: ["acme"] });
  const subject = `loraline.acme.run.${ulid()}.cancel-requested.v1`;
  expect((await nc.request(subject, "{}")).json()).toMatchObject({ stream: "DOOR_acme" });
  await expect(nc.request("$JS.API.STREAM.NAMES", "", { timeout: 500 })).rejects.toThrow(/permissions violation|timeout/i);
  await nc.close();
  await local.close();
});

it("takes over the store of a release that had no users", async () => {
  const dir = join(stateDir, "nats");
  const old = await spawnNatsServer({ storeDir: dir });
  const before = await old.connect();
  await ensureStreams(before);
  await before.request(`loraline.acme.run.${ulid()}.cancel-requested.v1`, "{}");
  await before.close();
  await old[Symbol.asyncDispose]();

  await using nats = await start([]);
  const nc = await nats.connect(localUser);
  expect((await (await jetstreamManager(nc)).streams.info("RUNS")).state.messages).toBe(1);
  await nc.close();
});

it("keeps its port from one start to the next, and its process ends with it", async () => {
  const first = await start([]);
  const { url } = first;
  const pid = await childPid();
  await first[Symbol.asyncDispose]();
  expect(processIdentity(pid)).toBeUndefined();
  await using second = await start([]);
  expect(second.url).toBe(url);
});

it("says why it does not start", async () => {
  const failing = startNats({
    stateDir,
    tenant: "acme",
    nats: "/bin/false",
    env: { PATH: process.env.PATH },
    logFile: join(stateDir, "nats.log"),
    log: createLog({ service: "test", level: "silent" }),
    onEnded() {},
    onDiskFull() {},
  });
  await expect(failing).rejects.toMatchObject({ code: "NATS_NOT_STARTED", message: expect.stringMatching(/exit code 1.*nats\.log/) });
  await vi.waitFor(async () => expect(await readFile(join(stateDir, "children/nats.json"), "utf8").catch(() => "gone")).toBe("gone"));
});
