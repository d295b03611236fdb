/** One cluster for all tests of this project. A cluster that ran before stays running; one that is started here is stopped. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
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
  const said = await script("infra/cluster/cluster-up.sh");
  project.provide("kubeconfig", said.trim().split("\n").at(-1) ?? "");
  return async () => {
    const own = process.env.LORALINE_KUBECONFIG === undefined && process.env.LORALINE_CLUSTER === undefined;
    if (own && !ranBefore) await script("infra/cluster/down.sh", join(root, ".cache/cluster"));
  };
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
