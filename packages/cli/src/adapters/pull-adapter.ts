/** `loraline adapters pull`: a version as a folder in PEFT's layout, which other programs load and `adapters add` takes back. */
import { createHash } from "node:crypto";
import { createWriteStream } from "node:fs";
import { chmod, mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import type { ApiClient, Answer } from "@loraline/client";
import { adapterFiles } from "@loraline/models";
import { exitCodes, Failure } from "../failure.ts";

interface Pulled {
  dir: string;
  version: Answer<"listVersionFiles">;
}

/**
 * The folder appears whole or not at all.
 * @param options.version - absent: the promoted one.
 * @param options.base - what the config calls the base, instead of the name that the server knows.
 * @throws Failure OUT_NOT_EMPTY, VERSION_MISSING, DOWNLOAD_BROKEN
 */
export async function pullAdapter(
  api: ApiClient,
  { adapter, version, out, base }: { adapter: string; version?: number | undefined; out: string; base?: string | undefined },
): Promise<Pulled> {
  const dir = await emptyFolder(out);
  const number = version ?? (await promotedOf(api, adapter));
  const files = await api.listVersionFiles({ adapter, version: number });
  const partial = await mkdtemp(join(dirname(dir), `.${basename(dir)}.partial-`));
  try {
    await chmod(partial, 0o755); // an engine may run as another user
    for (const { name, sha256 } of files.data) {
      const answer = await api.downloadVersionFile({ adapter, version: number, file: name });
      // The name is the server's: it must not lead out of the folder.
      await store(answer, join(partial, basename(name)), sha256);
    }
    if (base !== undefined) await renameBase(join(partial, adapterFiles.config), base);
    await rename(partial, dir); // fails where somebody has put something into it meanwhile
  } finally {
    await rm(partial, { recursive: true, force: true });
  }
  return { dir, version: files };
}

/**
 * A place for a folder that `rename` moves there when it is whole: nothing, or an empty folder. The folder above is made.
 * @returns its whole path
 * @throws Failure OUT_NOT_EMPTY
 */
export async function emptyFolder(out: string): Promise<string> {
  const dir = resolve(out);
  await mkdir(dirname(dir), { recursive: true });
  const there = await readdir(dir).catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return [];
    if (error.code === "ENOTDIR") return undefined;
    throw error;
  });
  if (there?.length === 0) return dir;
  const what = there === undefined ? "is a file" : `is not empty (${there[0]}…)`;
  throw new Failure(exitCodes.usage, "OUT_NOT_EMPTY", `${out} ${what}. Name an empty or a new folder.`, { param: "dir" });
}

async function promotedOf(api: ApiClient, adapter: string): Promise<number> {
  const { alias, versions } = (await api.getAdapter({ adapter })).adapter;
  if (alias !== null) return alias;
  const known = versions.map(({ version }) => `${adapter}@${version}`).join(", ");
  throw new Failure(exitCodes.usage, "VERSION_MISSING", `${adapter} has no promoted version. Say which one: ${known}.`, {
    param: "version",
  });
}

async function store(answer: Response, file: string, sha256: string | null): Promise<void> {
  const hash = createHash("sha256");
  await pipeline(
    Readable.fromWeb(answer.body ?? new Blob().stream()),
    async function* (parts: AsyncIterable<Uint8Array>) {
      for await (const part of parts) {
        hash.update(part);
        yield part;
      }
    },
    createWriteStream(file),
  );
  if (sha256 !== null && hash.digest("hex") !== sha256) {
    throw new Failure(exitCodes.failed, "DOWNLOAD_BROKEN", `${basename(file)} came with other bytes than the server has. Ask again.`, {
      param: basename(file),
    });
  }
}

async function renameBase(file: string, base: string): Promise<void> {
  const config = JSON.parse(await readFile(file, "utf8")) as Record<string, unknown>;
  await writeFile(file, `${JSON.stringify({ ...config, base_model_name_or_path: base, revision: null }, null, 2)}\n`);
}
