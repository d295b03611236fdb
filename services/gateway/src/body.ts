/** Bodies of requests: JSON against its contract, and fields of forms. */
import { problemsOf } from "@loraline/contracts";
import type { z } from "zod";
import { badRequestOf } from "./errors.ts";

/** @throws PermanentError 400 with every problem. */
export function parsedQuery<T extends z.ZodType>(schema: T, query: unknown): z.output<T> {
  const parsed = schema.safeParse(query);
  if (parsed.success) return parsed.data;
  const [first, ...others] = problemsOf(parsed.error, "invalid_query");
  throw first === undefined ? parsed.error : badRequestOf([first, ...others]);
}

/** @throws PermanentError 400 with every problem. */
export function parsedBody<T extends z.ZodType>(schema: T, body: unknown): z.output<T> {
  const parsed = schema.safeParse(body);
  if (parsed.success) return parsed.data;
  const [first, ...others] = problemsOf(parsed.error, "invalid_body");
  throw first === undefined ? parsed.error : badRequestOf([first, ...others]);
}

/** A field of a form as its text: the library has already parsed a part whose own content type is JSON. */
export const fieldText = (value: unknown): string => (typeof value === "string" ? value : JSON.stringify(value));
