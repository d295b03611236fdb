import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createLog, killGroup, processIdentity } from "@loraline/runtime";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { createWarmTrainers, type WarmTrainers } from "./warm-trainers.ts";

const soon = { timeout: 60_000 };
let dir: string;
let trainers: WarmTrainers;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "loraline-warm-test-"));
  for (const base of ["a", "b"]) mkdirSync(join(dir, "bases", base), { recursive: true });
  // Says who it is, and which base it was given.
  writeFileSync(join(dir, "warm.py"), 'echo "$2" > "$1.base"; echo $$ > "$1.pid"; exec sleep 600');
});
afterEach(async () => {
  await trainers[Symbol.asyncDispose]();
  rmSync(dir, { recursive: true, force: true });
});
const create = (idleMs: number): void => {
  trainers = createWarmTrainers({
    env: { PATH: process.env.PATH, LORALINE_PYTHON: "sh", LORALINE_TRAINER: join(dir, "train.py"), LORALINE_BASES_DIR: join(dir, "bases") },
    idleMs,
    logFile: join(dir, "warm.log"),
    log: createLog({ service: "test", level: "silent" }),
  });
};
async function take(tenant: string, base: string) {
  const taken = await trainers.take({ tenant, base });
  if (taken === undefined) throw new Error("none");
  await expect.poll(() => existsSync(`${taken.socket}.pid`) && readFileSync(`${taken.socket}.pid`, "utf8"), soon).toMatch(/\d\n/);
  const pid = Number(readFileSync(`${taken.socket}.pid`, "utf8"));
  return { pid, base: readFileSync(`${taken.socket}.base`, "utf8").trim(), give: () => taken[Symbol.dispose]() };
}
const lives = (pid: number): boolean => processIdentity(pid) !== undefined;

describe("warm trainers", () => {
  it("are shared by attempts of one tenant on one base, at once and later, and by no others", async () => {
    create(60_000);
    const first = await take("acme", "a");
    expect(first.base).toBe(join(dir, "bases/a"));
    const atOnce = await take("acme", "a");
    const [other, otherBase] = [await take("umbrella", "a"), await take("acme", "b")];
    expect(atOnce.pid).toBe(first.pid);
    expect(new Set([first.pid, other.pid, otherBase.pid]).size).toBe(3);
    first.give();
    atOnce.give();
    expect((await take("acme", "a")).pid).toBe(first.pid);
  });

  it("end when nobody used them for a while, and when another one is wanted", async () => {
    create(300);
    const idle = await take("acme", "a");
    idle.give();
    await expect.poll(() => lives(idle.pid), soon).toBe(false);
    create(60_000);
    const used = await take("acme", "a");
    const unused = await take("acme", "b");
    unused.give();
    await take("umbrella", "a");
    await expect.poll(() => lives(unused.pid), soon).toBe(false);
    expect(lives(used.pid)).toBe(true);
  });

  it("are made anew after one was killed, and end with what made them", async () => {
    create(60_000);
    const first = await take("acme", "a");
    killGroup(first.pid);
    await expect.poll(() => lives(first.pid), soon).toBe(false);
    await expect.poll(async () => (await take("acme", "a")).pid, soon).not.toBe(first.pid);
    const last = await take("acme", "a");
    await trainers[Symbol.asyncDispose]();
    expect(lives(last.pid)).toBe(false);
  });

  it("do not exist when they are turned off, nor for a base that is not there", async () => {
    create(0);
    expect(await trainers.take({ tenant: "acme", base: "a" })).toBeUndefined();
    create(60_000);
    expect(await trainers.take({ tenant: "acme", base: "none" })).toBeUndefined();
  });
});
