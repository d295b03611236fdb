/** `loraline adapters pull --merged`: base and adapter as one model, made and compared on this machine by the trainer's Python. */
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rename, rm, writeFile } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import type { ApiClient, Answer } from "@loraline/client";
import { readBaseRef } from "@loraline/models/base-ref";
import { z } from "zod";
import { exitCodes, Failure } from "../failure.ts";
import { emptyFolder, pullAdapter } from "./pull-adapter.ts";

const said = z.union([
  z.object({ agreement: z.number(), effect: z.number(), tokens: z.int() }),
  z.object({ error: z.object({ code: z.string(), message: z.string(), param: z.string().nullable() }) }),
]);
type Merged = Extract<z.output<typeof said>, { agreement: number }>;

interface MergeOptions {
  adapter: string;
  version?: number | undefined;
  out: string;
  /** Folder of the base. Absent: the one of its name in `basesDir`. */
  baseDir?: string | undefined;
  basesDir: string;
  python: string;
  script: string;
  signal: AbortSignal;
}

/**
 * The folder appears whole or not at all, and only if the merged model answers as base and adapter do.
 * @throws Failure OUT_NOT_EMPTY, BASE_MISMATCH, MERGE_BASE_QUANTISED, MERGE_DISAGREES, MERGE_FAILED
 * @throws PermanentError BASE_MISSING
 */
export async function mergeAdapter(
  api: ApiClient,
  { adapter, version, out, baseDir, basesDir, python, script, signal }: MergeOptions,
): Promise<{ dir: string; version: Answer<"listVersionFiles">; merged: Merged }> {
  const dir = await emptyFolder(out);
  const scratch = await mkdtemp(join(dirname(dir), `.${basename(dir)}.merge-`));
  try {
    const pulled = await pullAdapter(api, { adapter, version, out: join(scratch, "adapter") });
    const wanted = pulled.version.base;
    const base = resolve(baseDir ?? join(basesDir, wanted.name));
    const found = await readBaseRef(base);
    if (found.digest !== wanted.digest) {
      throw new Failure(
        exitCodes.usage,
        "BASE_MISMATCH",
        `${base} has other files (${found.digest}) than the base on which ${adapter} was trained (${wanted.digest}). Name its folder with --base-dir.`,
        { param: "--base-dir" },
      );
    }
    const merged = await run(python, [script, base, pulled.dir, join(scratch, "merged")], signal);
    const card = await readFile(join(pulled.dir, "README.md"), "utf8");
    await writeFile(join(scratch, "merged", "README.md"), mergedCard(card, merged));
    await rename(join(scratch, "merged"), dir);
    return { dir, version: pulled.version, merged };
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}

function run(python: string, args: readonly string[], signal: AbortSignal): Promise<Merged> {
  return new Promise((succeed, fail) => {
    execFile(python, args, { signal, maxBuffer: 16 * 1024 ** 2 }, (error, out, err) => {
      let line: z.output<typeof said> | undefined;
      try {
        line = said.parse(JSON.parse(out.trimEnd().split("\n").at(-1) ?? ""));
      } catch {
        const why = err.trimEnd().split("\n").at(-1) || (error?.message ?? "it said nothing");
        fail(
          new Failure(
            exitCodes.failed,
            "MERGE_FAILED",
            `${python} ended without a merged model: ${why}. Is the Python environment there (make setup), and memory enough?`,
            {
              cause: error,
            },
          ),
        );
        return;
      }
      if ("error" in line) fail(new Failure(exitCodes.failed, line.error.code, line.error.message, { param: line.error.param }));
      else succeed(line);
    });
  });
}

/** The adapter's card, as that of a model that needs no PEFT. */
function mergedCard(card: string, { agreement, effect, tokens }: Merged): string {
  const use = [
    "## Use",
    "",
    "The adapter is merged into the base: load this folder as a model of its own.",
    "",
    "```python",
    "from transformers import AutoModelForCausalLM",
    "",
    'model = AutoModelForCausalLM.from_pretrained("DIR")',
    "```",
    "",
    `Compared before it was written: log-probabilities of ${tokens} tokens differ from those of base and adapter by ${agreement.toFixed(4)} on average, where the adapter moves the base's by ${effect.toFixed(2)}.`,
    "",
    "",
  ].join("\n");
  return card.replace("library_name: peft", "library_name: transformers").replace(/^## Use\n[^]*?(?=^## )/m, () => use);
}
