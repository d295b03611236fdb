/**
 * Pure: puts the system prompt that a version was trained with before a conversation that has none, so that what answers is what was
 * trained. The header `x-loraline-system: off` leaves the conversation as it is.
 */
import type { RoutedVersion } from "@loraline/contracts";
import type { InferenceBody, InferencePath } from "./judge-inference-body.ts";

export const systemHeader = "x-loraline-system";

/** The version's system prompt, if the request is one that gets it. */
export function systemFor(
  path: InferencePath,
  { messages }: InferenceBody,
  version: Pick<RoutedVersion, "system"> | null,
  header: string | readonly string[] | undefined,
): string | undefined {
  const system = version?.system;
  if (path !== "chat/completions" || !system || header === "off" || !Array.isArray(messages)) return undefined;
  return messages.some(isSystem) ? undefined : system;
}

/** Reasoning models call it `developer`. */
const isSystem = (message: unknown): boolean => {
  const { role } = (message ?? {}) as { role?: unknown };
  return role === "system" || role === "developer";
};

/** @param system - undefined: the body as it is. */
export const withSystem = (body: InferenceBody, system: string | undefined): InferenceBody =>
  system === undefined ? body : { ...body, messages: [{ role: "system", content: system }, ...(body["messages"] as unknown[])] };
