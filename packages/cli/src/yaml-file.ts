/** Reads YAML (so also JSON) by a schema. Errors name file, line and field. */
import { readFile } from "node:fs/promises";
import { problemsOf } from "@loraline/contracts";
import { isMap, isNode, LineCounter, parseDocument } from "yaml";
import type { z } from "zod";
import { exitCodes, Failure } from "./failure.ts";

/** What kind of file it is. */
export interface YamlKind {
  /** Codes of its errors. */
  readonly unreadable: string;
  readonly invalid: string;
  /** What its fields are called: `sections`. */
  readonly fields: string;
}

/** @throws Failure with the kind's code `unreadable` */
export async function readText(path: string, { unreadable }: Pick<YamlKind, "unreadable">): Promise<string> {
  return readFile(path, "utf8").catch((error: NodeJS.ErrnoException) => {
    const why = error.code === "ENOENT" ? "there is no such file" : error.message;
    throw new Failure(exitCodes.usage, unreadable, `cannot read ${path}: ${why}.`, { param: path, cause: error });
  });
}

/**
 * @returns the file as it is written, and as the schema reads it.
 * @throws Failure with the kind's code `invalid`
 */
export function parseYaml<T extends z.ZodObject>(
  text: string,
  path: string,
  schema: T,
  kind: YamlKind,
): { raw: z.input<T>; value: z.output<T> } {
  const invalid = (message: string): Failure => new Failure(exitCodes.usage, kind.invalid, message, { param: path });
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false });
  const [broken] = document.errors;
  if (broken !== undefined) throw invalid(`${path}:${lines.linePos(broken.pos[0]).line}: not YAML: ${broken.message}`);
  const raw = (document.toJS() ?? {}) as z.input<T>;
  const parsed = schema.safeParse(raw);
  if (parsed.success) return { raw, value: parsed.data };
  const said = problemsOf(parsed.error).map(({ message, param }) => {
    const field = (param ?? "").split(".").filter((part) => part !== "");
    const offset = locate(document, field);
    return `${path}${offset === undefined ? "" : `:${lines.linePos(offset).line}`}: ${message}`;
  });
  const isUnknown = parsed.error.issues.some((issue) => issue.code === "unrecognized_keys" && issue.path.length === 0);
  const hint = isUnknown ? ` Known ${kind.fields}: ${Object.keys(schema.shape).join(", ")}.` : "";
  throw invalid(said.join("\n") + hint);
}

/** Offset of the field in the text, or of the nearest field around it. */
function locate(document: ReturnType<typeof parseDocument>, field: string[]): number | undefined {
  for (let length = field.length; length > 0; length--) {
    const around = length === 1 ? document.contents : document.getIn(field.slice(0, length - 1), true);
    const pair = isMap(around) ? around.items.find(({ key }) => String(isNode(key) ? key.toJSON() : key) === field[length - 1]) : undefined;
    if (pair !== undefined && isNode(pair.key) && pair.key.range) return pair.key.range[0];
  }
  return undefined;
}
