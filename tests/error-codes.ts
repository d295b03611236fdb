/**
 * Finds the error codes that sources raise: in PermanentError and similar classes, as `code` or `reason` of an object, or as argument of a
 * function that refuses, warns or reports. Pure: files in, findings out.
 */
import { parseSync, Visitor } from "oxc-parser";
import type { SourceFile } from "./architecture.ts";

interface Raised {
  code: string;
  /** `<path>:<line>` */
  at: string;
}

const words = /^[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*$/;
const severalWords = /^[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+$/;
/** Codes in OpenAI's spelling, which the gateway uses too. */
const lowerCase = /^[a-z][a-z0-9]*(?:_[a-z0-9]+)*$/;

/** Functions whose arguments look like codes and are names of environment variables or of PEFT. */
const takesNames = new Set(["env", "needed", "fastify"]);
/** Words of other programs that stand in the same places as codes. */
const notOurs = /^(?:E[A-Z]{3,}|ERR_\w+|UND_ERR_\w+|Z_\w+|FST_\w+|CAUSAL_LM|LORALINE_\w+|[A-Z]+_FILE|[A-Z]+_DIR)$/;

interface Node {
  type: string;
  start: number;
}

/** @returns the texts that an expression may evaluate to. */
function textsOf(node: unknown): { value: string; start: number }[] {
  const one = node as (Node & Record<string, unknown>) | null | undefined;
  switch (one?.type) {
    case "Literal":
      return typeof one["value"] === "string" ? [{ value: one["value"], start: one.start }] : [];
    case "ConditionalExpression":
      return [...textsOf(one["consequent"]), ...textsOf(one["alternate"])];
    case "LogicalExpression":
      return [...textsOf(one["left"]), ...textsOf(one["right"])];
    case "TSAsExpression":
    case "ParenthesizedExpression":
      return textsOf(one["expression"]);
    default:
      return [];
  }
}

const nameOf = (node: unknown): string => {
  const { type, name, property } = node as { type: string; name?: string; property?: { name?: string } };
  return type === "Super" ? "super" : (name ?? property?.name ?? "");
};

export function codesRaisedIn({ path, text }: SourceFile): Raised[] {
  const { program } = parseSync(path, text);
  const raised: Raised[] = [];
  const take = (node: unknown, shape: RegExp): void => {
    for (const { value, start } of textsOf(node)) {
      if (!shape.test(value) || notOurs.test(value)) continue;
      raised.push({ code: value, at: `${path}:${text.slice(0, start).split("\n").length}` });
    }
  };
  const isGateway = path.startsWith("services/gateway/");
  new Visitor({
    Property({ key, value }) {
      if (key.type !== "Identifier" || !["code", "reason", "unreadable", "invalid"].includes(key.name)) return;
      take(value, words);
      if (isGateway && key.name === "code") take(value, lowerCase);
    },
    NewExpression({ callee, arguments: given }) {
      if (!/(?:Error|Failure)$/.test(nameOf(callee))) return;
      for (const one of given) take(one, words);
      if (isGateway) take(given[0], lowerCase);
    },
    CallExpression({ callee, arguments: given }) {
      const name = nameOf(callee);
      if (takesNames.has(name)) return;
      for (const one of given) take(one, severalWords);
      if (isGateway && ["badRequest", "super"].includes(name)) take(given[0], lowerCase);
    },
    ArrayExpression({ elements }) {
      // `["CODE", "message"]`
      const [first, second] = elements;
      take(first, second?.type === "TemplateLiteral" || textsOf(second).some(({ value }) => value.includes(" ")) ? words : severalWords);
    },
  }).visit(program);
  return raised;
}

/** Codes in Python sources: the first argument of an error, and `"code": "…"` in emitted lines. */
export function codesRaisedInPython({ path, text }: SourceFile): Raised[] {
  const found = text.matchAll(/(?:TrainerError|Refused|Refusal|Problem)\(\s*"([A-Z][A-Z0-9_]*)"|"code": "([A-Z][A-Z0-9_]*)"/g);
  return [...found].map((match) => ({
    code: match[1] ?? match[2] ?? "",
    at: `${path}:${text.slice(0, match.index).split("\n").length}`,
  }));
}
