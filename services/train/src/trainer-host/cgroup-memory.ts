/** What the kernel says about the memory of this process's container: its limit, and how often something was killed for it. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";

interface CgroupMemory {
  /** Processes that the kernel killed in this cgroup because its memory was used up, since it exists. */
  oomKills: number;
  /** Bytes; undefined: no limit of its own. */
  limit: number | undefined;
}

/** Version 1 says "no limit" with a number near 2^63. */
const unlimited = 2 ** 60;

/**
 * Both versions of cgroups; undefined where neither can be read. In a container its own cgroup is what is mounted; without one it
 * is below the mount, by the path that `/proc/self/cgroup` gives.
 */
export async function readCgroupMemory(mount = "/sys/fs/cgroup", selfFile = "/proc/self/cgroup"): Promise<CgroupMemory | undefined> {
  const lines = ((await textOf(selfFile)) ?? "").split("\n").map((line) => /^\d+:([^:]*):(.*)$/.exec(line));
  const pathOf = (controller: string): string => lines.find((line) => line?.[1]?.split(",").includes(controller))?.[2] ?? "/";
  const places = [
    { dir: join(mount, pathOf("")), events: "memory.events", limit: "memory.max" },
    { dir: mount, events: "memory.events", limit: "memory.max" },
    { dir: join(mount, "memory", pathOf("memory")), events: "memory.oom_control", limit: "memory.limit_in_bytes" },
    { dir: join(mount, "memory"), events: "memory.oom_control", limit: "memory.limit_in_bytes" },
  ];
  for (const { dir, events, limit } of places) {
    const kills = /^oom_kill (\d+)$/m.exec((await textOf(join(dir, events))) ?? "")?.[1];
    if (kills === undefined) continue;
    const bytes = Number((await textOf(join(dir, limit)))?.trim());
    return { oomKills: Number(kills), limit: bytes < unlimited ? bytes : undefined };
  }
  return undefined;
}

const textOf = (path: string): Promise<string | undefined> => readFile(path, "utf8").catch(() => undefined);
