/** Settings from the environment, all problems at once. */
import { readFileSync } from "node:fs";
import { z } from "zod";
import { PermanentError } from "./errors.ts";

/**
 * Parses `source` (usually `process.env`). A variable NAME may be in a file, which NAME_FILE names: what is mounted as a file stands in no
 * process table and in no description of a pod. NAME itself wins.
 *
 * @throws PermanentError ENV_INVALID that lists every variable that is missing or wrong.
 */
export function loadEnv<T extends z.ZodType>(schema: T, source: Record<string, string | undefined>): z.output<T> {
  const set = Object.entries(source).filter(([, value]) => value !== undefined && value !== "");
  const unreadable: string[] = [];
  const fromFiles = (schema instanceof z.ZodObject ? Object.keys(schema.shape) : []).flatMap((name) => {
    const path = source[`${name}_FILE`];
    if (path === undefined || path === "" || (source[name] ?? "") !== "") return [];
    try {
      return [[name, readFileSync(path, "utf8").trim()]];
    } catch (error) {
      unreadable.push(`  ${name}_FILE: ${path} cannot be read (${(error as NodeJS.ErrnoException).code ?? String(error)})`);
      return [];
    }
  });
  const parsed = schema.safeParse(Object.fromEntries([...set, ...fromFiles]));
  if (parsed.success && unreadable.length === 0) return parsed.data;
  const problems = unreadable;
  for (const issue of parsed.error?.issues ?? []) problems.push(`  ${issue.path.join(".")}: ${issue.message}`);
  throw new PermanentError("ENV_INVALID", `these environment variables are missing or wrong:\n${problems.join("\n")}`);
}
