/** Quantised copies of the small base, which the tests make themselves. */
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { access, mkdir, readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { smollm2Dir } from "./base-dir.ts";

const root = join(import.meta.dirname, "../../..");
const script = join(import.meta.dirname, "../quantise.py");

/** The folder of a copy; made once for this script and base, whole or not at all. */
export async function quantisedBase(kind: "gptq" | "awq"): Promise<string> {
  const key = createHash("sha256")
    .update(await readFile(script))
    .update(await readFile(join(smollm2Dir, "base.json")))
    .digest("hex")
    .slice(0, 16);
  const dir = join(root, ".cache/quantised-bases", key, kind);
  const there = await access(dir).then(
    () => true,
    () => false,
  );
  if (there) return dir;
  const partial = `${dir}.${process.pid}`;
  await mkdir(partial, { recursive: true });
  await promisify(execFile)(join(root, ".venv/bin/python"), [script, smollm2Dir, partial, kind]);
  await rm(dir, { recursive: true, force: true });
  await rename(partial, dir);
  return dir;
}
