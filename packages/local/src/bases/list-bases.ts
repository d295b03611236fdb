/** The bases that are on this machine. */
import { readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { readBaseOrigin, readDerivedFrom } from "@loraline/models/base-ref";

export interface BaseHere {
  name: string;
  dir: string;
  /** Of all its files. */
  bytes: number;
  /** Class of the model, as its config.json says it. */
  architecture: string | null;
  /** Longest sequence that it was made for, in tokens. */
  context: number | null;
  /** Name on the hub of the model whose weights these are, or nearly are. */
  hub: string | null;
  /** How the files were made of the hub's, if they are not the same. */
  made: string | null;
  /** The unquantised base whose adapters it serves, too. */
  derivedFrom: string | null;
}

/** @returns the bases by name; empty when the folder is not there. */
export async function listBases(basesDir: string): Promise<BaseHere[]> {
  const names = await readdir(basesDir).catch((): string[] => []);
  const found = await Promise.all(names.filter((name) => !name.startsWith(".")).map((name) => baseIn(basesDir, name)));
  return found.filter((base) => base !== undefined).toSorted((a, b) => (a.name < b.name ? -1 : 1));
}

/** undefined: it is no base. */
async function baseIn(basesDir: string, name: string): Promise<BaseHere | undefined> {
  const dir = join(basesDir, name);
  const config = await readFile(join(dir, "config.json"), "utf8").then(
    (text) => JSON.parse(text) as Record<string, unknown>,
    () => undefined,
  );
  if (config === undefined) return undefined;
  const sizes = (await readdir(dir)).map((file) => stat(join(dir, file)).then(({ size }) => size));
  const origin = await readBaseOrigin(dir);
  const { architectures, max_position_embeddings: context } = config;
  return {
    name,
    dir,
    bytes: (await Promise.all(sizes)).reduce((sum, size) => sum + size, 0),
    architecture: Array.isArray(architectures) ? String(architectures[0]) : null,
    context: typeof context === "number" ? context : null,
    hub: origin?.hub ?? null,
    made: origin?.made ?? null,
    derivedFrom: (await readDerivedFrom(dir).catch(() => undefined))?.name ?? null,
  };
}
