/**
 * A copy of a state directory in one file, and back. It is made cold, while no server runs: then all its parts are of one moment, and
 * NATS' files are whole. What the next start makes again is left out.
 */
import { execFile } from "node:child_process";
import { chmod, mkdir, readdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { version } from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime";
import { z } from "zod";
import { killLeftovers, lockStateDir, readEngineNames, readStateVersion } from "./state-dir.ts";

/** First entry of a backup. */
const manifestFile = "backup.json";
const manifest = z.object({
  format: z.literal(1),
  version: z.string().describe("Of the release that wrote the state."),
  at: z.string(),
  bases: z.array(z.string()).describe("That were ever served on it. Their files are not in the backup."),
});
type BackupManifest = z.infer<typeof manifest>;

/** What the next start makes again, and what belongs to a process. */
const leftOut = /^(?:line\.lock.*|line\.json|children|spool|logs|adapters|adapters-.*|chat_template.*\.jinja|\..*)$/;

const endings = /\.(?:tar|tar\.gz|tgz)$/;

const tar = (args: readonly string[]): Promise<string> =>
  new Promise((done, failed) => {
    execFile("tar", args, { maxBuffer: 64 * 1024 * 1024 }, (error, stdout, stderr) =>
      error === null ? done(stdout) : failed(new Error(stderr.trim().split("\n")[0] || error.message, { cause: error })),
    );
  });

interface Options {
  stateDir: string;
  file: string;
  /** Of this process. */
  pid: number;
}

/**
 * Writes the backup, which appears whole or not at all. It holds keys and secrets, so only its owner can read it.
 * @throws PermanentError LINE_RUNNING, STATE_EMPTY, BACKUP_EXISTS, BACKUP_NAME_INVALID, BACKUP_NOT_WRITTEN
 */
export async function makeBackup({ stateDir, file, pid }: Options): Promise<BackupManifest & { bytes: number }> {
  if (!endings.test(file)) {
    throw new PermanentError("BACKUP_NAME_INVALID", `${file} must end in .tar or .tar.gz.`, { param: "file" });
  }
  if (await stat(file).catch(() => undefined)) {
    throw new PermanentError("BACKUP_EXISTS", `${file} is there already. Give another name; a backup is never overwritten.`, {
      param: "file",
    });
  }
  if ((await stat(join(stateDir, "nats")).catch(() => undefined)) === undefined) {
    throw new PermanentError("STATE_EMPTY", `${stateDir} holds no state yet: no server ever ran on it.`, { param: "--state" });
  }
  await using _lock = await lockStateDir(stateDir, pid);
  await killLeftovers(stateDir);
  const entries = (await readdir(stateDir)).filter((name) => !leftOut.test(name));
  const made: BackupManifest = {
    format: 1,
    version: (await readStateVersion(stateDir)) ?? version,
    at: new Date().toISOString(),
    bases: Object.keys(await readEngineNames(stateDir)),
  };
  const target = resolve(file);
  const partial = join(dirname(target), `.partial-${pid}-${basename(target)}`);
  const described = join(stateDir, ".backup");
  try {
    await mkdir(described, { recursive: true });
    await writeFile(join(described, manifestFile), `${JSON.stringify(made, null, 2)}\n`);
    await writeFile(partial, "", { mode: 0o600 });
    await tar(["--create", "--auto-compress", "--file", partial, "-C", described, manifestFile, "-C", stateDir, ...entries]);
    await chmod(partial, 0o600);
    await rename(partial, target);
  } catch (error) {
    throw new PermanentError("BACKUP_NOT_WRITTEN", `${file} was not written: ${(error as Error).message}.`, {
      param: "file",
      cause: error,
    });
  } finally {
    await rm(partial, { force: true });
    await rm(described, { recursive: true, force: true });
  }
  return { ...made, bytes: (await stat(target)).size };
}

/**
 * Makes the state of a backup that of an empty directory. What is broken or not a backup changes nothing.
 * @throws PermanentError LINE_RUNNING, STATE_NOT_EMPTY, BACKUP_INVALID
 */
export async function restoreBackup({ stateDir, file, pid }: Options): Promise<BackupManifest> {
  const invalid = (why: string, cause?: unknown): PermanentError =>
    new PermanentError("BACKUP_INVALID", `${file} cannot be restored: ${why}. Nothing was changed.`, { param: "file", cause });
  if (!(await stat(file).catch(() => undefined))?.isFile()) throw invalid("there is no such file");
  await using _lock = await lockStateDir(stateDir, pid);
  const there = (await readdir(stateDir)).filter((name) => !name.startsWith("line.lock") && !name.startsWith("."));
  if (there.length > 0) {
    throw new PermanentError(
      "STATE_NOT_EMPTY",
      `${stateDir} is not empty (${there.slice(0, 5).join(", ")}${there.length > 5 ? ", …" : ""}). Move it away, or restore into another directory with --state.`,
      { param: "--state" },
    );
  }
  const aside = join(stateDir, ".restore");
  await rm(aside, { recursive: true, force: true });
  try {
    await mkdir(aside, { mode: 0o700 });
    await tar(["--extract", "--file", resolve(file), "-C", aside, "--no-same-owner"]).catch((error: unknown) => {
      throw invalid((error as Error).message, error);
    });
    const text = await readFile(join(aside, manifestFile), "utf8").catch((error: unknown) => {
      throw invalid("it is no backup of `loraline backup`", error);
    });
    const parsed = manifest.safeParse(JSON.parse(text));
    if (!parsed.success) throw invalid("it was made by a release that this one does not understand");
    await rm(join(aside, manifestFile));
    for (const name of await readdir(aside)) await rename(join(aside, name), join(stateDir, name));
    return parsed.data;
  } finally {
    await rm(aside, { recursive: true, force: true });
  }
}
