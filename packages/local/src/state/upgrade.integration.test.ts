/** A state with real NATS in it: backed up, lost, restored and brought to this release. */
import { mkdtempDisposable, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createBus, ensureStreams } from "@loraline/bus";
import { buckets, version } from "@loraline/contracts";
import { createLog, createTelemetry } from "@loraline/runtime";
import { jetstream } from "@nats-io/jetstream";
import { expect, test } from "vitest";
import { localUser, startNats } from "../nats.ts";
import { makeBackup, restoreBackup } from "./backup.ts";
import { readStateVersion } from "./state-dir.ts";
import { upgradeState } from "./upgrade.ts";

const nats = join(import.meta.dirname, "../../../../.venv/bin/nats-server");
const env = { PATH: process.env.PATH };
const log = createLog({ service: "test", level: "silent" });
const { pid } = process;

test("what was stored is there after backup, loss, restore and upgrade, and what this release cannot read is named", async () => {
  await using dir = await mkdtempDisposable(join(tmpdir(), "loraline-upgrade-"));
  const stateDir = join(dir.path, "state");
  const open = async <T>(
    work: (bus: ReturnType<typeof createBus>, put: (subject: string, text: string) => Promise<unknown>) => Promise<T>,
  ) => {
    const logFile = join(dir.path, "nats.log");
    await using server = await startNats({ stateDir, tenant: "local", nats, env, logFile, log, onEnded() {}, onDiskFull() {} });
    const nc = await server.connect(localUser);
    await ensureStreams(nc, { tenants: ["local"] });
    await using telemetry = createTelemetry({ service: "test" });
    const js = jetstream(nc);
    const done = await work(createBus({ nc, log, telemetry, source: "test" }), (subject, text) => js.publish(subject, text));
    await nc.close();
    return done;
  };
  const limit = { requestsPerMinute: 7, tokensPerMinute: null, concurrency: null, by: "ann", at: new Date().toISOString() };
  await open(async (bus, put) => {
    await (await bus.bucket(buckets.limits)).put("local.pirate", limit);
    await put("$KV.limits.local.broken", "of a release long ago");
  });

  const file = join(dir.path, "line.tar.gz");
  await makeBackup({ stateDir, file, pid });
  await rm(stateDir, { recursive: true });
  await expect(upgradeState({ stateDir, tenant: "local", nats, env, pid })).rejects.toMatchObject({ code: "STATE_EMPTY" });
  await restoreBackup({ stateDir, file, pid });
  const done = await upgradeState({ stateDir, tenant: "local", nats, env, pid });
  expect(done).toMatchObject({ from: undefined, to: version, read: { limits: 1 }, unread: ["limits local.broken"] });
  expect(await readStateVersion(stateDir)).toBe(version);
  await open(async (bus) =>
    expect((await (await bus.bucket(buckets.limits)).get("local.pirate"))?.value).toMatchObject({ requestsPerMinute: 7 }),
  );
});
