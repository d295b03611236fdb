/**
 * Pure: which models a key may name that is bound to some.
 *
 *   pirate      the adapter: its alias, its runs, and commands on it
 *   pirate@2    one version of it
 *   pirate@RUN:ckpt-step-40    a checkpoint of one of its runs
 *   base:NAME   a base model
 */
import { PermanentError } from "@loraline/runtime";
import { parseModel } from "../inference/decide-route.ts";

export interface BoundModels {
  readonly patterns: readonly string[];
  /** @param name - as above, without a `*`. */
  allows(name: string): boolean;
}

/** @param patterns - `*` stands for any characters but `@`. */
export function boundModels(patterns: readonly string[]): BoundModels {
  const exact = new Set(patterns.filter((pattern) => !pattern.includes("*")));
  const open = patterns.filter((pattern) => pattern.includes("*"));
  return { patterns, allows: (name) => exact.has(name) || open.some((pattern) => matches(pattern, name)) };
}

/** Takes time in proportion to the lengths, whatever the pattern: the parts between the stars are searched from left to right. */
function matches(pattern: string, name: string): boolean {
  const [alias = "", version, ...rest] = name.split("@");
  const [ofAlias = "", ofVersion] = pattern.split("@");
  if (rest.length > 0 || (version === undefined) !== (ofVersion === undefined)) return false;
  if (alias.startsWith("base:") !== ofAlias.startsWith("base:")) return false;
  return holds(ofAlias, alias) && (version === undefined || holds(ofVersion ?? "", version));
}

function holds(pattern: string, text: string): boolean {
  const [first = "", ...others] = pattern.split("*");
  const last = others.pop();
  if (last === undefined) return pattern === text;
  if (!text.startsWith(first) || !text.endsWith(last) || text.length < first.length + last.length) return false;
  const end = text.length - last.length;
  let at = first.length;
  for (const part of others) {
    const found = text.indexOf(part, at);
    if (found < 0 || found + part.length > end) return false;
    at = found + part.length;
  }
  return true;
}

/** What the model's name of a request is called in a key's patterns. @param isBase - whether an engine serves a base of this name. */
export function boundNameOf(model: string, { tenant, isBase }: { tenant: string; isBase: boolean }): string {
  const named = isBase ? undefined : parseModel(model);
  if (named === undefined || named.tenant !== tenant) return `base:${model}`;
  if (named.checkpoint !== undefined) return `${named.adapter}@${named.checkpoint.runId}:ckpt-step-${named.checkpoint.step}`;
  return named.version === undefined ? named.adapter : `${named.adapter}@${named.version}`;
}

/** Whether the caller may see what belongs to this adapter. */
export const seesAdapter = ({ models }: { models: BoundModels | null }, adapter: string): boolean => models?.allows(adapter) ?? true;

/** @throws PermanentError 403 `model_not_allowed` unless a key with these models may name this one. Null: the key is not bound. */
export function checkModel({ by, models }: { by: string; models: BoundModels | null }, name: string): void {
  if (models === null || models.allows(name)) return;
  throw new PermanentError(
    "model_not_allowed",
    `The key "${by}" may not name \`${name}\`. It is bound to ${models.patterns.map((pattern) => `\`${pattern}\``).join(", ")}.`,
    { status: 403, param: "model" },
  );
}
