/**
 * The state directory of the server on this machine. It belongs to one process at a time.
 *
 *   line.lock      pid and identity of the owner
 *   line.json      where the server answers; no secrets
 *   api-key        the key that was made for this server (0600)
 *   secret         from which it derives what only its own programs may know (0600)
 *   nats-auth      password of each NATS user (0600)
 *   engine-key     key between gateway, agent and vLLM (0600)
 *   children/      pid and identity of every child, so that the next start can end those that a killed server left running
 *   ports.json     ports of its children, which stay the same over a restart
 *   engines.json   the engine of each base that was ever served here
 *   state.json     the release that wrote here last
 *   nats/ train/ adapters/ traces/ spool/ logs/
 */
import { randomBytes } from "node:crypto";
import { link, mkdir, open, readdir, readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { explainSystemError, killGroup, PermanentError, processIdentity } from "@loraline/runtime";
import { z } from "zod";

const processRecord = z.object({ pid: z.int(), identity: z.string() });

const lineFile = z.object({
  url: z.string(),
  natsUrl: z.string(),
  pid: z.int(),
  identity: z.string().describe("Tells the process apart from a later one with the same pid."),
  startedAt: z.string().optional(),
  version: z.string().optional().describe("Of the program that runs."),
  engines: z
    .array(z.object({ engine: z.string(), base: z.string(), url: z.string() }))
    .default([])
    .describe("Empty: of an older release."),
  tenant: z.string(),
});
/** `line.json`, by which other programs find a running server. */
type LineFile = z.infer<typeof lineFile>;

const isRunning = ({ pid, identity }: z.infer<typeof processRecord>): boolean => processIdentity(pid) === identity;

/**
 * Locks the directory for the process `pid`. A lock whose owner is dead is taken over.
 * @throws PermanentError LINE_RUNNING when a living process has it; STATE_DIR_UNUSABLE, DISK_FULL.
 */
export async function lockStateDir(stateDir: string, pid: number): Promise<AsyncDisposable> {
  const lock = join(stateDir, "line.lock");
  try {
    await mkdir(stateDir, { recursive: true, mode: 0o700 });
    const mine = `${lock}.${pid}`;
    await writeWhole(mine, { pid, identity: processIdentity(pid) });
    try {
      while (!(await linked(mine, lock))) await removeStaleLock(stateDir, lock, pid);
    } finally {
      await rm(mine, { force: true });
    }
  } catch (error) {
    if (error instanceof PermanentError) throw error;
    const explained = explainSystemError(error, `taking the state directory ${stateDir}`);
    if (explained instanceof PermanentError) throw explained;
    throw new PermanentError(
      "STATE_DIR_UNUSABLE",
      `cannot use the state directory ${stateDir}: ${explained.message}. Choose another with --state.`,
      {
        param: "--state",
        cause: error,
      },
    );
  }
  return {
    async [Symbol.asyncDispose]() {
      await rm(lock, { force: true });
    },
  };
}

/** Links a file under a second name; false when that name is taken. A link appears at once, so a lock is never seen half-written. */
const linked = (from: string, to: string): Promise<boolean> =>
  link(from, to).then(
    () => true,
    (error: NodeJS.ErrnoException) => {
      if (error.code === "EEXIST") return false;
      throw error;
    },
  );

async function removeStaleLock(stateDir: string, lock: string, pid: number): Promise<void> {
  const owner = await readRecord(lock, processRecord);
  if (owner !== undefined && isRunning(owner)) {
    throw new PermanentError(
      "LINE_RUNNING",
      `a server already runs on ${stateDir} (pid ${owner.pid}). Use it, stop it with \`loraline stop\`, or choose another directory with --state.`,
      { param: "--state" },
    );
  }
  // Of two starts at once, only one can move the stale lock away. If it then holds the lock of a new owner, it puts that back.
  const aside = `${lock}.stale.${pid}`;
  await rename(lock, aside).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== "ENOENT") throw error;
  });
  const moved = await readRecord(aside, processRecord);
  if (moved !== undefined && isRunning(moved)) await linked(aside, lock);
  await rm(aside, { force: true });
}

/** The living process that has the directory: a server, or a command that works on its state. */
export async function readOwner(stateDir: string): Promise<z.infer<typeof processRecord> | undefined> {
  const owner = await readRecord(join(stateDir, "line.lock"), processRecord);
  return owner !== undefined && isRunning(owner) ? owner : undefined;
}

/** Children that run, by name. */
export async function readChildren(stateDir: string): Promise<{ name: string; pid: number }[]> {
  const files = await readdir(join(stateDir, "children")).catch((): string[] => []);
  const found = await Promise.all(
    files.map(async (file) => ({
      name: file.replace(/\.json$/, ""),
      child: await readRecord(join(stateDir, "children", file), processRecord),
    })),
  );
  return found.flatMap(({ name, child }) => (child !== undefined && isRunning(child) ? [{ name, pid: child.pid }] : []));
}

/** Writes down a child, until `forgetChild`. */
export async function recordChild(stateDir: string, name: string, pid: number): Promise<void> {
  await mkdir(join(stateDir, "children"), { recursive: true });
  await writeWhole(join(stateDir, "children", `${name}.json`), { pid, identity: processIdentity(pid) ?? "gone" });
}

export const forgetChild = (stateDir: string, name: string): Promise<void> =>
  rm(join(stateDir, "children", `${name}.json`), { force: true });

/**
 * Ends children that outlived an earlier server.
 * @returns their names.
 */
export async function killLeftovers(stateDir: string): Promise<string[]> {
  const killed: string[] = [];
  const dir = join(stateDir, "children");
  for (const file of await readdir(dir).catch(() => [])) {
    const child = await readRecord(join(dir, file), processRecord);
    if (child !== undefined && isRunning(child)) {
      killGroup(child.pid);
      killed.push(file.replace(/\.json$/, ""));
      while (isRunning(child)) await new Promise((resolve) => setTimeout(resolve, 20));
    }
    await rm(join(dir, file), { force: true });
  }
  return killed;
}

/**
 * Empties the directory, and first ends the children that an earlier server left running on it.
 * @throws PermanentError as `lockStateDir` does.
 */
export async function clearStateDir(stateDir: string, pid: number): Promise<void> {
  await using _lock = await lockStateDir(stateDir, pid);
  await killLeftovers(stateDir);
  for (const entry of await readdir(stateDir)) {
    if (!entry.startsWith("line.lock")) await rm(join(stateDir, entry), { recursive: true, force: true });
  }
}

/** Finds the server that runs on this directory; undefined when none does. */
export async function findLine(stateDir: string): Promise<(LineFile & { apiKey: string | undefined }) | undefined> {
  const line = await readRecord(join(stateDir, "line.json"), lineFile);
  if (line === undefined || !isRunning(line)) return undefined;
  return { ...line, apiKey: await readSecret(stateDir, "api-key") };
}

export async function announceLine(stateDir: string, line: LineFile): Promise<AsyncDisposable> {
  const file = join(stateDir, "line.json");
  await writeWhole(file, line, 0o644);
  return {
    async [Symbol.asyncDispose]() {
      await rm(file, { force: true });
    },
  };
}

const readSecret = async (stateDir: string, name: string): Promise<string | undefined> => {
  const secret = await readFile(join(stateDir, name), "utf8").catch(() => "");
  return secret.trim() === "" ? undefined : secret.trim();
};
const newSecret = (): string => randomBytes(24).toString("base64url");

async function ensureKept(stateDir: string, name: string, prefix = ""): Promise<string> {
  const known = await readSecret(stateDir, name);
  if (known !== undefined) return known;
  const secret = `${prefix}${newSecret()}`;
  await writeWhole(join(stateDir, name), secret);
  return secret;
}

/** Reads the API key of this server, or makes it at the first start. */
export const ensureApiKey = (stateDir: string): Promise<string> => ensureKept(stateDir, "api-key", "ll-");

/** The same for the key with which vLLM is asked. */
export const ensureEngineKey = (stateDir: string): Promise<string> => ensureKept(stateDir, "engine-key");

/** The same for the passwords of NATS' users, by user. */
export async function ensureNatsPasswords(stateDir: string, users: readonly string[]): Promise<Record<string, string>> {
  const file = join(stateDir, "nats-auth");
  const known = (await readRecord(file, z.record(z.string(), z.string()))) ?? {};
  if (users.every((user) => known[user] !== undefined)) return known;
  const all = { ...Object.fromEntries(users.map((user) => [user, newSecret()])), ...known };
  await writeWhole(file, all);
  return all;
}

/** The same for the secret from which the server derives what only its own programs may know. */
export const ensureSecret = (stateDir: string): Promise<string> => ensureKept(stateDir, "secret");

/** @returns the password of a NATS user; undefined where there is none, or the directory is somebody else's. */
export const readNatsPassword = async (stateDir: string, user: string): Promise<string | undefined> =>
  (await readRecord(join(stateDir, "nats-auth"), z.record(z.string(), z.string())))?.[user];

const engineNames = z.record(z.string(), z.string());

/** Base to engine, for all bases that were ever served on this directory; empty before the first start. */
export const readEngineNames = async (stateDir: string): Promise<Record<string, string>> =>
  (await readRecord(join(stateDir, "engines.json"), engineNames)) ?? {};

export async function keepEngineNames(stateDir: string, names: Readonly<Record<string, string>>): Promise<void> {
  await writeWhole(join(stateDir, "engines.json"), names);
}

const stateFile = z.object({ version: z.string(), at: z.string() });

/** The release that wrote into the directory last; undefined: one that did not say so, or none. */
export const readStateVersion = async (stateDir: string): Promise<string | undefined> =>
  (await readRecord(join(stateDir, "state.json"), stateFile))?.version;

export async function keepStateVersion(stateDir: string, version: string): Promise<void> {
  if ((await readStateVersion(stateDir)) !== version)
    await writeWhole(join(stateDir, "state.json"), { version, at: new Date().toISOString() });
}

/** The port that a child had at the last start; undefined before the first. */
export const readPort = async (stateDir: string, name: string): Promise<number | undefined> =>
  (await readRecord(join(stateDir, "ports.json"), z.record(z.string(), z.int())))?.[name];

export async function keepPort(stateDir: string, name: string, port: number): Promise<void> {
  const ports = (await readRecord(join(stateDir, "ports.json"), z.record(z.string(), z.int()))) ?? {};
  if (ports[name] !== port) await writeWhole(join(stateDir, "ports.json"), { ...ports, [name]: port });
}

/** Reads a file of this directory. One that cannot be read or parsed counts as absent: its writer was killed, or it is none of ours. */
async function readRecord<T extends z.ZodType>(path: string, schema: T): Promise<z.output<T> | undefined> {
  try {
    return schema.parse(JSON.parse(await readFile(path, "utf8")));
  } catch {
    return undefined;
  }
}

/** Writes a file that appears whole or not at all. */
async function writeWhole(path: string, value: unknown, mode = 0o600): Promise<void> {
  const partial = `${path}.partial`;
  const file = await open(partial, "w", mode);
  try {
    await file.writeFile(typeof value === "string" ? `${value}\n` : `${JSON.stringify(value, null, 2)}\n`);
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(partial, path);
}
