/** Puts a base among those of this machine: a copy of a folder in Hugging Face's layout, or a model of the hub. It appears whole or not at all. */
import { constants, copyFile, mkdir, mkdtemp, readdir, rename, rm, stat, writeFile } from "node:fs/promises";
import { basename, join, resolve } from "node:path";
import type { Writable } from "node:stream";
import type { BaseOrigin, Digest } from "@loraline/contracts";
import { fetchBase, requireBaseFiles } from "@loraline/models/adding";
import { readBaseRef, requireBaseOrigin } from "@loraline/models/base-ref";
import { PermanentError } from "@loraline/runtime";
import { checkEngine, twinOf } from "@loraline/serve";
import { localDefaults } from "../engines/local-engines.ts";
import { type BaseHere, listBases } from "./list-bases.ts";

interface AddBase {
  /** A folder, or `organisation/name[@revision]`. */
  source: string;
  /** Default: as the source is called. */
  name?: string | undefined;
  /** Of a quantised base: the one here that it was made of. */
  derivedFrom?: string | undefined;
  basesDir: string;
  /** For a model of the hub. */
  python: string;
  env: Record<string, string | undefined>;
  signal: AbortSignal;
  /** Takes the hub's progress. */
  progress: Writable;
}

const nameOf = /^[\w][\w.-]{0,95}$/;
/** Weights that can run code when they are read, and weights for other programs. */
const notTaken = /\.(?:bin|pt|pth|pkl|ckpt|h5|msgpack|onnx|gguf|tflite)$/;

/** @throws PermanentError BASE_NOT_FOUND, BASE_EXISTS, BASE_NAME_INVALID, BASE_INVALID, BASE_MISSING, TWIN_…, ENGINE_IMPOSSIBLE, HUB_UNREACHABLE, DISK_FULL */
export async function addBase({ source, name: asked, derivedFrom, basesDir, ...ofHub }: AddBase): Promise<BaseHere> {
  const isFolder = await stat(source).then(
    (info) => info.isDirectory(),
    () => false,
  );
  const [, hub, revision] = /^([\w-][\w.-]*\/[\w-][\w.-]*)(?:@([\w./-]+))?$/.exec(source) ?? [];
  if (!isFolder && hub === undefined) {
    throw new PermanentError(
      "BASE_NOT_FOUND",
      `there is no folder ${source}, and it is no model of the hub either (organisation/name, or organisation/name@revision).`,
      { param: "source" },
    );
  }
  const name = asked ?? (isFolder ? basename(resolve(source)) : basename(hub as string).toLowerCase());
  if (!nameOf.test(name)) {
    throw new PermanentError(
      "BASE_NAME_INVALID",
      `"${name}" is no base's name: letters, digits, dots and dashes. Give another with --name.`,
      {
        param: "--name",
      },
    );
  }
  const target = join(basesDir, name);
  if (await stat(target).catch(() => undefined)) {
    throw new PermanentError(
      "BASE_EXISTS",
      `there is a base "${name}" already: ${target}. Choose another name with --name, or remove that folder.`,
      {
        param: "--name",
      },
    );
  }
  if (derivedFrom !== undefined) await readBaseRef(join(basesDir, derivedFrom));
  await mkdir(basesDir, { recursive: true });
  const partial = await mkdtemp(join(basesDir, `.${name}.partial-`));
  try {
    const files = join(partial, name);
    await mkdir(files);
    const origin = isFolder ? await copyFolder(source, files) : await fetchBase({ hub: hub as string, revision, into: files, ...ofHub });
    await judge(files, name, source);
    const { digest } = await readBaseRef(files);
    const ref = { name, revision: origin?.revision ?? (isFolder ? await revisionOf(source, digest) : undefined) ?? "unknown", digest };
    const twin = derivedFrom === undefined ? {} : { derivedFrom: await twinOf(files, join(basesDir, derivedFrom)) };
    // With it the files need not be read again at each start.
    await writeFile(
      join(files, "base.json"),
      `${JSON.stringify({ ...ref, ...(origin === undefined ? {} : { origin }), ...twin }, null, 2)}\n`,
    );
    await rename(files, target);
  } finally {
    await rm(partial, { recursive: true, force: true });
  }
  const added = (await listBases(basesDir)).find((base) => base.name === name);
  if (added === undefined) throw new Error(`${target} was made, and is not there`);
  return added;
}

/** Copies what belongs to a base: the files directly in the folder, but no weights in formats that are not read. Links are followed. */
async function copyFolder(source: string, into: string): Promise<BaseOrigin | undefined> {
  for (const entry of await readdir(source)) {
    if (entry.startsWith(".") || entry === "base.json" || notTaken.test(entry)) continue;
    const path = join(source, entry);
    // Where the file system can, both share their blocks.
    if ((await stat(path)).isFile()) await copyFile(path, join(into, entry), constants.COPYFILE_FICLONE);
  }
  return requireBaseOrigin(source);
}

/** What the folder's own base.json calls these very files. */
const revisionOf = (source: string, digest: Digest): Promise<string | undefined> =>
  readBaseRef(source).then(
    (own) => (own.digest === digest ? own.revision : undefined),
    () => undefined,
  );

/** Whether a base in Hugging Face's layout came, and one that the engine can serve with adapters. */
async function judge(dir: string, name: string, source: string): Promise<void> {
  await requireBaseFiles(dir, source);
  const { maxLoras, maxCpuLoras, maxLoraRank } = localDefaults;
  await checkEngine({ engine: name, base: name, maxLoras, maxCpuLoras, maxLoraRank, maxModelLen: 1, gpus: 0 }, dir);
}
