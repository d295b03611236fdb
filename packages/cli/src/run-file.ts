/** `run.yaml`: the sections of the run spec that are not already said on the command line. */
import { readFile } from "node:fs/promises";
import { problemsOf, runSpecFields } from "@loraline/contracts";
import { isMap, isNode, LineCounter, parseDocument } from "yaml";
import type { z } from "zod";
import { exitCodes, Failure } from "./failure.ts";

const sections = runSpecFields.pick({
  lora: true,
  training: true,
  tokenize: true,
  holdout: true,
  min_records: true,
  gate: true,
  gate_accuracy: true,
  promote: true,
  canary: true,
  placement: true,
  max_attempts: true,
});
/** As written: defaults are the line's business. */
export type RunFile = z.input<typeof sections>;

/** @throws Failure RUN_FILE_INVALID that names file, line and field. */
export async function readRunFile(path: string): Promise<RunFile> {
  const text = await readFile(path, "utf8").catch((error: NodeJS.ErrnoException) => {
    throw new Failure(
      exitCodes.usage,
      "RUN_FILE_UNREADABLE",
      `cannot read ${path}: ${error.code === "ENOENT" ? "there is no such file" : error.message}.`,
      {
        param: path,
        cause: error,
      },
    );
  });
  return parseRunFile(text, path);
}

export function parseRunFile(text: string, path: string): RunFile {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false });
  const [broken] = document.errors;
  if (broken !== undefined) {
    throw new Failure(exitCodes.usage, "RUN_FILE_INVALID", `${path}:${lines.linePos(broken.pos[0]).line}: not YAML: ${broken.message}`, {
      param: path,
    });
  }
  const raw = (document.toJS() ?? {}) as RunFile;
  const parsed = sections.safeParse(raw);
  if (parsed.success) return raw;
  const said = problemsOf(parsed.error).map(({ message, param }) => {
    const field = (param ?? "").split(".").filter((part) => part !== "");
    const node = locate(document, field);
    const line = node === undefined ? "" : `:${lines.linePos(node).line}`;
    return `${path}${line}: ${message}`;
  });
  const known = Object.keys(sections.shape).join(", ");
  const hint = parsed.error.issues.some((issue) => issue.code === "unrecognized_keys" && issue.path.length === 0)
    ? ` Known sections: ${known}.`
    : "";
  throw new Failure(exitCodes.usage, "RUN_FILE_INVALID", said.join("\n") + hint, { param: path });
}

/** Where the field, or the nearest thing around it, is written. */
function locate(document: ReturnType<typeof parseDocument>, field: string[]): number | undefined {
  for (let length = field.length; length > 0; length--) {
    const around = length === 1 ? document.contents : document.getIn(field.slice(0, length - 1), true);
    const pair = isMap(around) ? around.items.find(({ key }) => String(isNode(key) ? key.toJSON() : key) === field[length - 1]) : undefined;
    if (pair !== undefined && isNode(pair.key) && pair.key.range) return pair.key.range[0];
  }
  return undefined;
}
