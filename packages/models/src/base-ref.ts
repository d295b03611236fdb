/**
 * Identifies the base in a folder: name, revision and digest of its files. Stages compare these, so that all of them use the same base.
 * They stand in base.json. For a plain folder in Hugging Face's layout, such as one that a user put on a volume, they are computed.
 */
import { createHash } from "node:crypto";
import { readdir, readFile, stat } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { type BaseOrigin, baseOrigin, type BaseRef, baseRef, type DerivedFrom, derivedFrom, type Digest } from "@loraline/contracts";
import { explainSystemError, PermanentError } from "@loraline/runtime/errors";
import { digestOfFile } from "@loraline/objects";

/** Computed references, kept as long as names, sizes and times of the folder's files do not change. */
const computed = new Map<string, { files: string; ref: Promise<BaseRef> }>();

/**
 * A folder without base.json is read whole, once in this process; a trainer or an engine reads the same files anyway.
 * @throws PermanentError BASE_MISSING (names those that are there), BASE_INVALID
 */
export async function readBaseRef(dir: string): Promise<BaseRef> {
  const name = basename(resolve(dir));
  const file = join(dir, "base.json");
  const text = await readFile(file, "utf8").catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT" || error.code === "ENOTDIR") return undefined;
    throw explainSystemError(error, `reading ${file}`);
  });
  if (text === undefined) return computeRef(dir, name);
  if (saysOriginOnly(text)) return computeRef(dir, name);
  let ref: BaseRef;
  try {
    ref = baseRef.parse(JSON.parse(text));
  } catch (error) {
    throw new PermanentError(
      "BASE_INVALID",
      `${file} is not a base's description (name, revision, digest). Remove it, or make the base anew.`,
      { param: "base", cause: error },
    );
  }
  if (ref.name !== name) {
    throw new PermanentError(
      "BASE_INVALID",
      `${file} says that the base is called "${ref.name}", but its folder is "${name}". Rename one.`,
      {
        param: "base",
      },
    );
  }
  return ref;
}

/** Whether base.json leaves name, revision and digest to be computed: it was written by hand, to say where the base comes from. */
function saysOriginOnly(text: string): boolean {
  try {
    const said = Object.keys(JSON.parse(text) as object);
    return said.length > 0 && said.every((name) => name === "origin" || name === "derivedFrom");
  } catch {
    return false;
  }
}

/**
 * Where the base in a folder comes from; undefined if its base.json does not say it.
 * @throws PermanentError BASE_INVALID if it says it in a form that is not understood.
 */
export async function requireBaseOrigin(dir: string): Promise<BaseOrigin | undefined> {
  const file = join(dir, "base.json");
  const text = await readFile(file, "utf8").catch(() => "{}");
  let given: unknown;
  try {
    given = (JSON.parse(text) as { origin?: unknown } | null)?.origin;
  } catch {
    return undefined; // whoever reads the base itself says it
  }
  const parsed = baseOrigin.nullish().safeParse(given);
  if (parsed.success) return parsed.data ?? undefined;
  const [issue] = parsed.error.issues;
  const field = ["origin", ...(issue?.path ?? [])].join(".");
  throw new PermanentError(
    "BASE_INVALID",
    `${file}: ${field} is not understood: ${issue?.message}. It may have hub (organisation/name), revision and made, which are texts.`,
    { param: "base" },
  );
}

/** The same for whoever only tells of it: what is not understood takes the place of how the base was made, so that it is seen. */
export const readBaseOrigin = (dir: string): Promise<BaseOrigin | undefined> =>
  requireBaseOrigin(dir).catch((error: unknown) => {
    if (!(error instanceof PermanentError)) throw error;
    return { made: `not known: ${error.message}`.slice(0, 2000) };
  });

/**
 * The unquantised base that the one in a folder was made of, as its base.json says; undefined if it does not.
 * @throws PermanentError BASE_INVALID
 */
export async function readDerivedFrom(dir: string): Promise<DerivedFrom | undefined> {
  const file = join(dir, "base.json");
  const text = await readFile(file, "utf8").catch(() => "{}");
  try {
    return derivedFrom.optional().parse((JSON.parse(text) as { derivedFrom?: unknown }).derivedFrom);
  } catch (error) {
    throw new PermanentError("BASE_INVALID", `${file}: derivedFrom is not a base's name and digest. Correct it, or remove it.`, {
      param: "derivedFrom",
      cause: error,
    });
  }
}

/**
 * A key that changes whenever the folder may hold another base than before.
 * @throws PermanentError BASE_MISSING
 */
export async function baseVersion(dir: string): Promise<string> {
  const own = await stat(join(dir, "base.json")).catch(() => undefined);
  if (own === undefined) return signatureOf(await filesOf(dir));
  const text = await readFile(join(dir, "base.json"), "utf8").catch(() => "");
  return saysOriginOnly(text) ? `${own.mtimeMs}${signatureOf(await filesOf(dir))}` : String(own.mtimeMs);
}

interface File {
  name: string;
  size: number;
  mtimeMs: number;
}

/** @returns all files directly in the folder except hidden ones; a link counts as the file that it leads to. */
async function filesOf(dir: string): Promise<File[]> {
  const names: string[] = await readdir(dir).catch(() => []);
  if (!names.includes("config.json")) throw await missing(dir);
  const files: File[] = [];
  for (const name of names.toSorted()) {
    if (name.startsWith(".") || name === "base.json") continue;
    const found = await stat(join(dir, name)).catch((error: unknown) => {
      throw explainSystemError(error, `reading base ${dir}`);
    });
    if (found.isFile()) files.push({ name, size: found.size, mtimeMs: found.mtimeMs });
  }
  return files;
}
const signatureOf = (files: readonly File[]): string => JSON.stringify(files.map(({ name, size, mtimeMs }) => [name, size, mtimeMs]));

async function computeRef(dir: string, name: string): Promise<BaseRef> {
  const files = await filesOf(dir);
  const signature = signatureOf(files);
  const known = computed.get(dir);
  if (known?.files === signature) return known.ref;
  const compute = async (): Promise<BaseRef> => {
    // The same computation as in packages/local/prepare-base.py.
    const hash = createHash("sha256");
    for (const file of files) {
      const digest: Digest = await digestOfFile(join(dir, file.name));
      hash.update(`${digest.slice("sha256:".length)}  ${file.name}\n`);
    }
    return { name, revision: "unknown", digest: `sha256:${hash.digest("hex")}` };
  };
  const ref = compute();
  computed.set(dir, { files: signature, ref });
  ref.catch(() => computed.delete(dir));
  return ref;
}

async function missing(dir: string): Promise<PermanentError> {
  const basesDir = dirname(resolve(dir));
  const there = await readdir(basesDir, { withFileTypes: true }).catch(() => undefined);
  const known = there?.filter((entry) => !entry.name.startsWith(".") && !entry.isFile()).map((entry) => entry.name);
  const which =
    known === undefined
      ? `${basesDir} cannot be read`
      : known.length === 0
        ? `${basesDir} is empty`
        : `there ${known.length === 1 ? "is" : "are"} ${known.toSorted().join(", ")}`;
  return new PermanentError(
    "BASE_MISSING",
    `base "${basename(resolve(dir))}" is not here: ${join(dir, "config.json")} is missing; ${which}. Put its files there (on one machine: \`make setup\`), or name another.`,
    { param: "base" },
  );
}
