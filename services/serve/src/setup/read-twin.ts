/** What a base was made of, as its operator declares it, after a check of both folders. */
import { stat } from "node:fs/promises";
import { basename, join, resolve } from "node:path";
import type { DerivedFrom } from "@loraline/contracts";
import { checkTwin } from "@loraline/models";
import { readBaseRef, readDerivedFrom } from "@loraline/models/base-ref";
import { PermanentError } from "@loraline/runtime";
import { readTemplate } from "@loraline/tokens";

/**
 * @param asked - the unquantised base, as an engine's settings name it; undefined: as base.json of the quantised one does.
 * @returns undefined: the base is said to be made of no other.
 * @throws PermanentError TWIN_…: the two do not belong together; BASE_MISSING: the original is not here; BASE_INVALID
 */
export async function readTwin(basesDir: string, base: string, asked?: string): Promise<DerivedFrom | undefined> {
  const dir = join(basesDir, base);
  const noted = await readDerivedFrom(dir);
  const name = asked ?? noted?.name;
  if (name === undefined) return undefined;
  const original = join(basesDir, name);
  // Adapters of before need no original to be served: it was compared when the base was added.
  if (noted?.name === name && !(await stat(original).catch(() => undefined))) return noted;
  return twinOf(dir, original);
}

/** @throws PermanentError TWIN_…: the two do not belong together; BASE_MISSING; BASE_INVALID */
export async function twinOf(dir: string, original: string): Promise<DerivedFrom> {
  const { digest } = await readBaseRef(original);
  const refuse = (code: string, message: string): PermanentError => new PermanentError(code, message, { param: "derivedFrom" });
  const problem = await checkTwin(dir, original);
  if (problem !== undefined) throw refuse(problem.code, problem.message);
  if ((await readTemplate(dir)) !== (await readTemplate(original))) {
    throw refuse(
      "TWIN_TEMPLATE_DIFFERS",
      `the chat templates of ${dir} and ${original} differ, so adapters would be asked in a form they have never seen. Put the original's chat_template.jinja into ${dir}.`,
    );
  }
  return { name: basename(resolve(original)), digest };
}
