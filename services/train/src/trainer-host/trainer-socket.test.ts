import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createLog, processIdentity, spawnGuarded } from "@loraline/runtime";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { createLocalTrainerHost, trainerEnvironment } from "./trainer-host.ts";
import { connectTrainerHost, serveTrainer, warmTrainerHost } from "./trainer-socket.ts";

const log = createLog({ service: "test", level: "silent" });
let dir: string;
let path: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "loraline-socket-"));
  path = join(dir, "trainer.sock");
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

/** A "trainer" that is a shell script. */
async function serve(script: string, env: Record<string, string> = {}): Promise<AsyncDisposable> {
  const trainerPath = join(dir, "trainer.sh");
  writeFileSync(trainerPath, script);
  return await serveTrainer(path, createLocalTrainerHost({ python: "sh", trainerPath, env: { PATH: process.env.PATH, ...env } }), log);
}
const start = () => connectTrainerHost(path, 2000).start({ launch: [], work: dir, logFile: join(dir, "trainer.log") });
const printed = (): string => {
  try {
    return readFileSync(join(dir, "trainer.log"), "utf8").trim();
  } catch {
    return "";
  }
};

describe("a trainer behind a socket", () => {
  it("is started with its own environment, and how it ended is told; each start is another one", async () => {
    await using _serving = await serve('echo "$1 $SECRET $OWN"; exit 7', { OWN: "own" });
    for (let n = 0; n < 2; n++) expect(await (await start()).exited).toEqual({ code: 7, signal: null });
    expect(printed()).toBe(`${dir}  own\n${dir}  own`);
  });

  it("gets signals", async () => {
    await using _serving = await serve('trap "echo saved; exit 75" TERM; echo ready; while :; do sleep 0.05; done');
    const trainer = await start();
    await expect.poll(printed).toBe("ready");
    trainer.kill("SIGTERM");
    expect(await trainer.exited).toEqual({ code: 75, signal: null });
    expect(printed()).toBe("ready\nsaved");
    const another = await start();
    another.kill("SIGKILL");
    expect(await another.exited).toEqual({ code: null, signal: "SIGKILL" });
  });

  it("is killed when the courier is gone", async () => {
    await using _serving = await serve("while :; do sleep 0.05; done");
    const socket = connect(path);
    socket.write(`${JSON.stringify({ start: { launch: [], work: dir, logFile: join(dir, "trainer.log") } })}\n`);
    const said = await new Promise<string>((resolve) => socket.once("data", (text: Buffer) => resolve(text.toString())));
    const { pid } = (JSON.parse(said) as { started: { pid: number } }).started;
    expect(processIdentity(pid)).toBeDefined();
    socket.destroy();
    await expect.poll(() => processIdentity(pid)).toBeUndefined();
  });

  it("counts as killed when its container is gone, and as unreachable when there is none", async () => {
    writeFileSync(join(dir, "trainer.sh"), "while :; do sleep 0.05; done");
    const main = join(import.meta.dirname, "../trainer-main.ts");
    const env = { PATH: process.env.PATH, TRAINER_SOCKET: path, LORALINE_PYTHON: "sh", LORALINE_TRAINER: join(dir, "trainer.sh") };
    const container = spawnGuarded(process.execPath, ["--conditions=@loraline/source", main], { env, stderr: join(dir, "container.log") });
    const trainer = await connectTrainerHost(path, 20_000).start({ launch: [], work: dir, logFile: join(dir, "trainer.log") });
    container.kill("SIGKILL");
    expect(await trainer.exited).toEqual({ code: null, signal: "SIGKILL" });
    const again = connectTrainerHost(path, 100).start({ launch: [], work: dir, logFile: join(dir, "trainer.log") });
    await expect(again).rejects.toMatchObject({ code: "TRAINER_UNREACHABLE", message: expect.stringContaining("-c trainer") });
  }, 30_000);

  it("says why it could not be started", async () => {
    const host = createLocalTrainerHost({ python: "sh", trainerPath: join(dir, "none.py"), env: {} });
    await using _serving = await serveTrainer(path, host, log);
    await expect(start()).rejects.toMatchObject({ code: "TRAINER_MISSING" });
  });

  it("that is to be a warm one, and is gone or dies before it starts anything, is replaced by one that starts by itself", async () => {
    writeFileSync(join(dir, "cold.sh"), "exit 3");
    const cold = createLocalTrainerHost({ python: "sh", trainerPath: join(dir, "cold.sh"), env: { PATH: process.env.PATH } });
    const host = warmTrainerHost(path, cold, log);
    const wanted = { launch: [], work: dir, logFile: join(dir, "trainer.log") };
    const code = async (launch: string[] = []) => (await (await host.start({ ...wanted, launch })).exited).code;
    const dying = createServer((socket) => socket.destroy());
    await new Promise<void>((resolve) => dying.listen(path, resolve));
    expect(await code()).toBe(3);
    await new Promise((resolve) => dying.close(resolve));
    await using _serving = await serve("exit 7");
    expect(await code()).toBe(7);
    expect(await code(["-e"])).toBe(3); // several processes are not a warm one's work
  });
});

it("a trainer that is the courier's child gets settings of its machine, and no secrets", () => {
  const machine = {
    PATH: "/bin",
    CUDA_VISIBLE_DEVICES: "0",
    ONEDNN_MAX_CPU_ISA: "AVX2",
    NCCL_DEBUG: "INFO",
    OMP_NUM_THREADS: "2",
    HF_HUB_OFFLINE: "1",
    LC_ALL: "C",
  };
  const more = { PYTHONPATH: "/x", LD_LIBRARY_PATH: "/lib", TRAINER_SCRIPT: "{}" };
  const secrets = {
    NATS_PASS: "p",
    AWS_SECRET_ACCESS_KEY: "s",
    HF_TOKEN: "t",
    ENGINE_API_KEY: "e",
    BOOTSTRAP_API_KEY: "b",
    GITHUB_TOKEN: "g",
  };
  expect(trainerEnvironment({ ...machine, ...more, ...secrets, DATABASE_URL: "d", PATHS: "x" })).toEqual({ ...machine, ...more });
});
