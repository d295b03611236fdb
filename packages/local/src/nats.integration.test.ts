import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ensureStreams } from "@loraline/bus";
import { createLog, killGroup, processIdentity } from "@loraline/runtime";
import { jetstream, jetstreamManager } from "@nats-io/jetstream";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { startNats } from "./nats.ts";

const root = join(import.meta.dirname, "../../..");
let stateDir: string;
beforeEach(async () => {
  stateDir = await mkdtemp(join(tmpdir(), "loraline-nats-"));
});
afterEach(() => rm(stateDir, { recursive: true, force: true, maxRetries: 3 }));

const start = (ends: string[]) =>
  startNats({
    stateDir,
    nats: join(root, ".venv/bin/nats-server"),
    env: { PATH: process.env.PATH },
    logFile: join(stateDir, "nats.log"),
    log: createLog({ service: "test", level: "silent" }),
    onEnded: ({ why }) => void ends.push(why),
    onDiskFull() {},
  });

const childPid = async (): Promise<number> =>
  (JSON.parse(await readFile(join(stateDir, "children/nats.json"), "utf8")) as { pid: number }).pid;

it("loses nothing that was acknowledged when it is killed, and is back on the same port", async () => {
  const ends: string[] = [];
  await using nats = await start(ends);
  await ensureStreams(nats.nc);
  const js = jetstream(nats.nc, { timeout: 1000 });
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

  const jsm = await jetstreamManager(nats.nc);
  const { state } = await jsm.streams.info("DLQ");
  const stored = new Set<number>();
  const messages = await (await js.consumers.get("DLQ")).fetch({ max_messages: state.messages, expires: 10_000 });
  for await (const message of messages) {
    stored.add(Number(message.string()));
    if (message.info.pending === 0) break;
  }
  expect([...acknowledged].filter((n) => !stored.has(n))).toEqual([]);
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
