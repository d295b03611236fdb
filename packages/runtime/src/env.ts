/** Settings from the environment, all problems at once. */
import type { z } from "zod";
import { PermanentError } from "./errors.ts";

/**
 * Parses `source` (usually `process.env`).
 * @throws PermanentError ENV_INVALID that lists every variable that is missing or wrong.
 */
export function loadEnv<T extends z.ZodType>(schema: T, source: Record<string, string | undefined>): z.output<T> {
  const present = Object.fromEntries(Object.entries(source).filter(([, value]) => value !== undefined && value !== ""));
  const parsed = schema.safeParse(present);
  if (parsed.success) return parsed.data;
  const problems = parsed.error.issues.map((issue) => `  ${issue.path.join(".")}: ${issue.message}`);
  throw new PermanentError("ENV_INVALID", `these environment variables are missing or wrong:\n${problems.join("\n")}`);
}
