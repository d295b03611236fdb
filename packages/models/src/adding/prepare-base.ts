/** Brings a base onto the volume of the bases, if it is not there, and says which bytes it has. What was cut off goes on where it was. */
import { mkdir, rename, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Writable } from "node:stream";
import type { BaseRef } from "@loraline/contracts";
import { readBaseRef } from "../base-ref.ts";
import { fetchBase, requireBaseFiles } from "./fetch-base.ts";

interface PrepareBase {
  /** Folder of the base. */
  name: string;
  /** Where it comes from; absent: somebody else puts it there. */
  hub: string | undefined;
  revision: string | undefined;
  basesDir: string;
  python: string;
  env: Record<string, string | undefined>;
  signal: AbortSignal;
  progress: Writable;
}

/** @throws PermanentError BASE_MISSING, BASE_INVALID, HUB_UNREACHABLE */
export async function prepareBase({ name, hub, revision, basesDir, ...how }: PrepareBase): Promise<BaseRef> {
  const target = join(basesDir, name);
  const isThere = await stat(target).then(
    () => true,
    () => false,
  );
  if (isThere || hub === undefined) {
    await requireBaseFilesOf(target, name);
    return readBaseRef(target);
  }
  // Of a name that no other base has, so that it is found again by the next attempt. Whole, it appears under its own.
  const around = join(basesDir, `.${name}.partial`);
  const partial = join(around, name);
  await mkdir(partial, { recursive: true });
  await rm(join(partial, "base.json"), { force: true });
  const origin = await fetchBase({ hub, revision, into: partial, ...how });
  await requireBaseFiles(partial, hub);
  const { digest } = await readBaseRef(partial);
  const ref: BaseRef = { name, revision: origin.revision ?? "unknown", digest };
  await writeFile(join(partial, "base.json"), `${JSON.stringify({ ...ref, origin }, null, 2)}\n`);
  await rename(partial, target);
  await rm(around, { recursive: true, force: true });
  return ref;
}

/** The folder's own absence is told by who reads it, with the names of those that are there. */
async function requireBaseFilesOf(dir: string, name: string): Promise<void> {
  if (await stat(dir).catch(() => undefined)) await requireBaseFiles(dir, `base "${name}"`);
}
