import { spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { runSpec } from "@loraline/contracts";
import { createLog, killGroup, processIdentity } from "@loraline/runtime";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { attemptNameOf, type AttemptRequest } from "../attempt/attempt-spec.ts";
import type { Attempt } from "./launcher.ts";
import { createProcessLauncher, type ProcessLauncherOptions } from "./process-launcher.ts";

const runId = "01JD0000000000000000000001";
const log = createLog({ service: "test", level: "silent" });
const soon = { timeout: 60_000 };
const hex = "0".repeat(64);

const attemptOf = (attempt: number, id = runId): AttemptRequest => ({
  version: 1,
  tenant: "acme",
  runId: id,
  attempt,
  name: attemptNameOf(id, attempt),
  runSpec: runSpec.parse({ base: "b", adapter: "pirate", dataset: runId }),
  tokens: { kind: "tokens", digest: `sha256:${hex}`, size: 1 },
  init: null,
  twins: [],
  resume: null,
  traceparent: null,
});

let dir: string;
const opened: AsyncDisposable[] = [];
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "loraline-launcher-"));
});
afterEach(async () => {
  for (const one of opened.splice(0)) await one[Symbol.asyncDispose]();
  rmSync(dir, { recursive: true, force: true });
});

/** A launcher whose courier is this shell script; `$1` is the attempt's folder. */
async function launcherOf(script: string, options: Partial<ProcessLauncherOptions> = {}) {
  const launcher = await createProcessLauncher({
    dir,
    courierCommand: ["sh", "-c", script, "courier"],
    env: { PATH: process.env.PATH },
    log,
    ...options,
  });
  opened.push(launcher);
  const only = async (): Promise<Attempt | undefined> => (await launcher.observe())[0];
  return { launcher, only };
}
const fileOf = (attempt: number, name: string, id = runId) => join(dir, attemptNameOf(id, attempt), name);
const pidIn = async (path: string): Promise<number> => {
  await expect.poll(() => existsSync(path) && readFileSync(path, "utf8"), soon).toMatch(/\d+\n/);
  return Number(readFileSync(path, "utf8"));
};

describe("process launcher", () => {
  it("says that it has one machine only", async () => {
    const { launcher } = await launcherOf("true");
    const attempt = attemptOf(1);
    await expect(launcher.launch({ ...attempt, runSpec: { ...attempt.runSpec, nodes: 2 } })).rejects.toMatchObject({
      code: "NODES_UNSUPPORTED",
      param: "nodes",
    });
  });

  it("gives the courier its spec and environment, and keeps its log", async () => {
    const { launcher, only } = await launcherOf('cat "$1/attempt.json"; echo; pwd; echo "$MINE"; echo oops >&2', {
      env: { PATH: process.env.PATH, MINE: "m" },
    });
    expect(await launcher.launch(attemptOf(1))).toBe(true);
    await expect.poll(only, soon).toMatchObject({ tenant: "acme", runId, attempt: 1, name: attemptNameOf(runId, 1), phase: "concluded" });
    const [spec = "", ...rest] = readFileSync(fileOf(1, "courier.log"), "utf8").trim().split("\n");
    expect(JSON.parse(spec)).toMatchObject(attemptOf(1));
    expect(rest).toEqual([join(dir, attemptNameOf(runId, 1)), "m", "oops"]);
  });

  it.each<[string, string, object]>([
    ["exit 0", "exit 0", { phase: "concluded" }],
    ["exit 10", "exit 10", { phase: "concluded" }],
    [
      "75 with a reason",
      `echo '{"code":"DISK_FULL","message":"no room"}' > "$1/outcome.json"; exit 75`,
      { phase: "failed", code: "DISK_FULL", message: "no room" },
    ],
    ["75 without a reason", "exit 75", { phase: "failed", code: "PREEMPTED" }],
    ["75 with half a reason", `printf '{"code":"DI' > "$1/outcome.json"; exit 75`, { phase: "failed", code: "PREEMPTED" }],
    [
      "a crash",
      "echo TypeError: x >&2; exit 1",
      { phase: "failed", code: "COURIER_CRASHED", message: "the courier ended with exit code 1: TypeError: x" },
    ],
    [
      "a crash in words",
      `echo '{"level":60,"msg":"NATS refused"}'; exit 1`,
      { phase: "failed", code: "COURIER_CRASHED", message: "the courier ended with exit code 1: NATS refused" },
    ],
    ["a kill", "kill -9 $$", { phase: "failed", code: "COURIER_CRASHED", message: "the courier ended with SIGKILL: it wrote no log" }],
  ])("understands %s, also after a restart", async (_, script, expected) => {
    const { launcher, only } = await launcherOf(script);
    await launcher.launch(attemptOf(1));
    await expect.poll(only, soon).toMatchObject(expected);
    const before = await only();
    await launcher[Symbol.asyncDispose]();
    expect(await (await launcherOf("exit 99")).only()).toEqual(before);
  });

  it("runs no more attempts at once than it has slots, and says when one is free again", async () => {
    const { launcher } = await launcherOf('while [ ! -e "$1/go" ]; do sleep 0.02; done', { slots: 2 });
    const ids = ["01JD0000000000000000000001", "01JD0000000000000000000002", "01JD0000000000000000000003"] as const;
    const heard: string[] = [];
    launcher.watch((run) => heard.push(run.runId));
    // All at once: a slot is taken before anything is awaited.
    expect(await Promise.all(ids.map((id) => launcher.launch(attemptOf(1, id))))).toEqual([true, true, false]);
    expect(await launcher.slots()).toEqual({ total: 2, free: 0 });
    expect(await launcher.launch(attemptOf(1, ids[0]))).toBe(true); // the same name again changes nothing
    expect(await launcher.observe()).toHaveLength(2);
    writeFileSync(fileOf(1, "go", ids[1]), "");
    await expect.poll(() => heard, soon).toEqual([ids[1]]);
    expect(await launcher.slots()).toEqual({ total: 2, free: 1 });
    expect(await launcher.launch(attemptOf(1, ids[2]))).toBe(true);
    for (const id of [ids[0], ids[2]]) writeFileSync(fileOf(1, "go", id), "");
    await expect.poll(() => launcher.slots(), soon).toEqual({ total: 2, free: 2 });
  });

  it("stops with SIGTERM, and with SIGKILL what does not listen", async () => {
    const { launcher } = await launcherOf(
      'if grep -q "attempt\\":1" "$1/attempt.json"; then trap "exit 75" TERM; else trap "" TERM; fi; echo $$ > "$1/ready"; while :; do sleep 0.02; done',
      { slots: 2, stopGraceMs: 300 },
    );
    for (const attempt of [1, 2]) await launcher.launch(attemptOf(attempt));
    for (const attempt of [1, 2]) await pidIn(fileOf(attempt, "ready"));
    for (const attempt of [1, 2]) await launcher.stop(attemptNameOf(runId, attempt));
    await launcher.stop("train-unknown-1");
    await expect
      .poll(() => launcher.observe(), soon)
      .toMatchObject([
        { attempt: 1, phase: "failed", code: "PREEMPTED" },
        { attempt: 2, phase: "failed", code: "PREEMPTED" },
      ]);
  });

  it("removes what has ended with everything it left, and nothing that runs", async () => {
    const { launcher } = await launcherOf('while [ ! -e "$1/go" ]; do sleep 0.02; done');
    await launcher.launch(attemptOf(1));
    await launcher.remove(attemptNameOf(runId, 1));
    expect(await launcher.observe()).toHaveLength(1);
    writeFileSync(fileOf(1, "go"), "");
    await expect.poll(() => launcher.observe(), soon).toMatchObject([{ phase: "concluded" }]);
    await launcher.remove(attemptNameOf(runId, 1));
    await launcher.remove(attemptNameOf(runId, 1));
    expect(await launcher.observe()).toEqual([]);
    expect(readdirSync(dir)).toEqual([]);
  });

  it("lets running attempts end orderly when it is disposed, and starts none any more", async () => {
    const { launcher } = await launcherOf('trap "sleep 0.3; exit 75" TERM; echo $$ > "$1/ready"; while :; do sleep 0.02; done');
    await launcher.launch(attemptOf(1));
    await pidIn(fileOf(1, "ready"));
    await launcher[Symbol.asyncDispose]();
    expect(await launcher.observe()).toMatchObject([{ phase: "failed", code: "PREEMPTED" }]);
    expect(await launcher.launch(attemptOf(2))).toBe(false);
  });

  it("says what is wrong when the courier cannot be started, and leaves nothing", async () => {
    const { launcher } = await launcherOf("", { courierCommand: ["/no/such/node"] });
    await expect(launcher.launch(attemptOf(1))).rejects.toThrow(/cannot start \/no\/such\/node/);
    expect(await launcher.observe()).toEqual([]);
    expect(readdirSync(dir)).toEqual([]);
  });
});

describe("after a kill -9 of the launcher's process", () => {
  const courier = 'echo $$ > "$1/pid"; trap "" TERM; sleep 60';
  /** A launcher in a process of its own; kills it when attempt 1 runs. */
  async function launchAndKill(): Promise<number> {
    const module = JSON.stringify(join(import.meta.dirname, "process-launcher.ts"));
    const runtime = JSON.stringify(join(import.meta.dirname, "../../../../packages/runtime/src/index.ts"));
    const options = JSON.stringify({ dir, courierCommand: ["sh", "-c", courier, "courier"], env: { PATH: process.env.PATH } });
    const script = join(dir, ".launch.mjs");
    writeFileSync(
      script,
      `import { createProcessLauncher } from ${module};
       import { createLog } from ${runtime};
       const launcher = await createProcessLauncher({ ...${options}, log: createLog({ service: "test", level: "silent" }) });
       await launcher.launch(${JSON.stringify(attemptOf(1))});
       setInterval(() => {}, 1000);`,
    );
    // Not "inherit": a process that a failed test left behind would hold the output open, and vitest would wait for it for ever.
    const parent = spawn(process.execPath, ["--conditions=@loraline/source", script], { stdio: "ignore" });
    try {
      const pid = await pidIn(fileOf(1, "pid"));
      await expect.poll(() => existsSync(fileOf(1, "process.json")), soon).toBe(true);
      return pid;
    } finally {
      parent.kill("SIGKILL");
    }
  }

  it("the courier dies along, and the attempt is known as lost", async () => {
    const pid = await launchAndKill();
    await expect.poll(() => processIdentity(pid), soon).toBeUndefined();
    const { only } = await launcherOf(courier);
    expect(await only()).toMatchObject({ attempt: 1, phase: "failed", code: "ATTEMPT_LOST" });
  });

  it("a courier and a trainer that survived are ended, and no other process that has their pid now", async () => {
    const sleeper = () => spawn("sleep", ["60"], { detached: true, stdio: "ignore" });
    const [orphan, trainer, innocent] = [sleeper(), sleeper(), sleeper()] as const;
    for (const [attempt, one, recorded] of [
      [1, orphan, true],
      [2, innocent, false],
    ] as const) {
      const { launcher } = await launcherOf("exit 1");
      await launcher.launch(attemptOf(attempt));
      await launcher[Symbol.asyncDispose]();
      const folder = join(dir, attemptNameOf(runId, attempt));
      const identity = recorded ? processIdentity(one.pid as number) : "another boot/1";
      writeFileSync(join(folder, "process.json"), JSON.stringify({ pid: one.pid, identity }));
      if (attempt === 1)
        writeFileSync(join(folder, "trainer.json"), JSON.stringify({ pid: trainer.pid, identity: processIdentity(trainer.pid as number) }));
      rmSync(join(folder, "exit.json"));
    }
    const { launcher } = await launcherOf("exit 1");
    expect(await launcher.observe()).toMatchObject([{ code: "ATTEMPT_LOST" }, { code: "ATTEMPT_LOST" }]);
    expect([orphan, trainer, innocent].map(({ pid }) => processIdentity(pid as number) === undefined)).toEqual([true, true, false]);
    killGroup(innocent.pid as number);
  });

  it("a folder without a job is litter, and one with a job that never started is a lost attempt", async () => {
    const { launcher } = await launcherOf("exit 1");
    await launcher.launch(attemptOf(1));
    await launcher[Symbol.asyncDispose]();
    for (const name of ["exit.json", "process.json"]) rmSync(fileOf(1, name));
    mkdirSync(join(dir, "train-half-removed-1/work"), { recursive: true });
    const { only } = await launcherOf("exit 1");
    expect(await only()).toMatchObject({ code: "ATTEMPT_LOST" });
    expect(readdirSync(dir)).toEqual([attemptNameOf(runId, 1)]);
  });
});
