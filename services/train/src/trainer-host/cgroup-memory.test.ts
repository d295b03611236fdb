import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { readCgroupMemory } from "./cgroup-memory.ts";

let dir: string;
beforeEach(() => (dir = mkdtempSync(join(tmpdir(), "loraline-cgroup-"))));
afterEach(() => rmSync(dir, { recursive: true, force: true }));
const read = async (files: Record<string, string>, self: string) => {
  for (const [path, text] of Object.entries({ ...files, self })) {
    mkdirSync(dirname(join(dir, path)), { recursive: true });
    writeFileSync(join(dir, path), text);
  }
  return readCgroupMemory(join(dir, "mount"), join(dir, "self"));
};
const v2 = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n";
const v1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n";

describe("the memory of this container", () => {
  it("version 2, in a container with a namespace of its own", async () => {
    expect(await read({ "mount/memory.events": v2, "mount/memory.max": "1073741824\n" }, "0::/\n")).toEqual({
      oomKills: 2,
      limit: 2 ** 30,
    });
  });
  it("version 2, below the mount, without a limit", async () => {
    expect(await read({ "mount/user/me/memory.events": v2, "mount/user/me/memory.max": "max\n" }, "0::/user/me\n")).toEqual({
      oomKills: 2,
      limit: undefined,
    });
  });
  it("version 1, where a container sees the host's path and its own mount", async () => {
    const files = { "mount/memory/memory.oom_control": v1, "mount/memory/memory.limit_in_bytes": "524288000\n" };
    expect(await read(files, "5:cpu,cpuacct:/kubepods/x\n4:memory:/kubepods/x\n0::/\n")).toEqual({ oomKills: 5, limit: 524_288_000 });
  });
  it("version 1, without a limit", async () => {
    const files = { "mount/memory/a/memory.oom_control": v1, "mount/memory/a/memory.limit_in_bytes": "9223372036854771712\n" };
    expect(await read(files, "4:memory:/a\n")).toEqual({ oomKills: 5, limit: undefined });
  });
  it("none that can be read", async () => {
    expect(await read({}, "")).toBeUndefined();
  });
});
