/** One cluster for all tests of this project. A cluster that ran before stays running; one that is started here is stopped. */
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { TestProject } from "vitest/node";

declare module "vitest" {
  export interface ProvidedContext {
    kubeconfig: string;
  }
}

const root = join(import.meta.dirname, "../../..");

export async function setup(project: TestProject): Promise<() => Promise<void>> {
  const ranBefore = runsHere();
  const before = machine();
  const said = await script("infra/cluster/cluster-up.sh");
  project.provide("kubeconfig", said.trim().split("\n").at(-1) ?? "");
  return async () => {
    const own = process.env.LORALINE_KUBECONFIG === undefined && process.env.LORALINE_CLUSTER === undefined;
    if (!own || ranBefore) return;
    await script("infra/cluster/down.sh", join(root, ".cache/cluster"));
    const after = machine();
    const changed = Object.keys(after).filter((what) => before[what] !== undefined && before[what] !== after[what]);
    if (changed.length > 0)
      throw new Error(
        `down.sh left what the cluster changed: ${changed.map((what) => `${what}: ${before[what]} → ${after[what]}`).join("; ")}`,
      );
  };
}

/** What of this machine a node changes. */
function machine(): Record<string, string> {
  const settings = ["kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "vm/overcommit_memory", "net/ipv4/ip_forward"];
  const folders = [
    "/var/lib/kubelet",
    "/var/lib/cni",
    "/var/log/pods",
    "/var/log/containers",
    "/sys/fs/cgroup/memory/kubepods",
    "/run/test-cluster",
  ];
  const seen = Object.fromEntries(settings.map((name) => [name, readFileSync(join("/proc/sys", name), "utf8").trim()]));
  for (const folder of folders) seen[folder] = existsSync(folder) ? "there" : "not there";
  try {
    const rules = execFileSync("iptables-save", { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
    seen["iptables"] = String(rules.split("\n").filter((line) => /KUBE-|CNI-|cni0/.test(line)).length);
  } catch {
    // Not installed yet, or not for us to see.
  }
  return seen;
}

/** A file that infra/cluster/up.sh writes and down.sh removes. */
function runsHere(): boolean {
  try {
    const dir = readFileSync("/run/test-cluster", "utf8").trim();
    process.kill(Number(readFileSync(join(dir, "apiserver.pid"), "utf8")), 0);
    return true;
  } catch {
    return false;
  }
}

async function script(path: string, ...args: string[]): Promise<string> {
  const child = spawn(join(root, path), args, { stdio: ["ignore", "pipe", "pipe"] });
  let out = "";
  let said = "";
  child.stdout.on("data", (text: Buffer) => (out += text.toString()));
  child.stderr.on("data", (text: Buffer) => {
    said += text.toString();
    process.stderr.write(text);
  });
  const [code] = (await once(child, "close")) as [number];
  if (code !== 0) throw new Error(`${path} ended with ${code}: ${said.trim().split("\n").slice(-10).join("\n")}`);
  return out;
}
