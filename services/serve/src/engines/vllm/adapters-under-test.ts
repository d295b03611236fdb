/** The adapters that adapters-under-test.py makes, and what it and probe-twin.py recorded of them. */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { access, mkdir, readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { type ProbeRecord, probeRecord } from "@loraline/contracts";
import { z } from "zod";
import type { AdapterBytes } from "../../serve-under-test.ts";

const root = join(import.meta.dirname, "../../../../..");
const baseDir = join(root, ".loraline/bases/smollm2-135m-instruct");

/** A folder that a script of this room filled from these arguments; made once, whole or not at all. */
async function made(script: string, by: string, ...args: string[]): Promise<string> {
  const file = join(import.meta.dirname, script);
  const key = createHash("sha256")
    .update(await readFile(file))
    .update(by)
    .digest("hex")
    .slice(0, 16);
  const dir = join(root, ".cache/serve-adapters", key);
  const there = await access(dir).then(
    () => true,
    () => false,
  );
  if (there) return dir;
  const partial = `${dir}.${process.pid}`;
  await mkdir(partial, { recursive: true });
  await promisify(execFile)(join(root, ".venv/bin/python"), [file, ...args, partial]);
  await rm(dir, { recursive: true, force: true });
  await rename(partial, dir);
  return dir;
}

export const makeAdapters = async (): Promise<string> =>
  made("adapters-under-test.py", await readFile(join(baseDir, "base.json"), "utf8"), baseDir);

/** The record of these adapters on a quantised base. */
export const probeTwin = (twin: string, adapters: string): Promise<string> => made("probe-twin.py", `${twin} ${adapters}`, twin, adapters);

export const probesIn = async (file: string): Promise<ProbeRecord[]> =>
  z.array(probeRecord).parse(JSON.parse(await readFile(file, "utf8")));

/** An adapter with the record of the one that it was made of. `from`: the folder that it is in, if another one. */
export async function bytesOf(adapters: string, kind: string, from = adapters): Promise<AdapterBytes> {
  return {
    config: await readFile(join(from, kind, "adapter_config.json")),
    weights: await readFile(join(from, kind, "adapter_model.safetensors")),
    probes: await probesIn(join(adapters, `${/^(weak|preferred)/.exec(kind)?.[0].concat("-") ?? ""}probes.json`)),
  };
}
