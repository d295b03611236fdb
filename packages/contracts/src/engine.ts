/** What an engine can serve, and the judgement of a run spec against it before anything is spent. */
import { z } from "zod";
import { digest, isoTime, type Problem, tenantName } from "./names.ts";
import type { RunSpec } from "./run-spec.ts";

export const baseRef = z.object({
  name: z.string(),
  revision: z.string(),
  digest,
});
export type BaseRef = z.infer<typeof baseRef>;

/** KV `engines`, key = engine name. Written by serve at start, read by every door. */
export const engineRecord = z.object({
  engine: z.string().describe("Name of the engine (a vLLM Deployment, or one local vLLM process)."),
  base: baseRef,
  maxLoraRank: z.int(),
  maxLoras: z.int(),
  maxCpuLoras: z.int(),
  maxModelLen: z.int().describe("Tokens, prompt and answer together."),
  tenants: z.array(tenantName).nullish().describe("Tenants that may use it; absent: all."),
  tasks: z
    .array(z.enum(["generate", "embed"]))
    .min(1)
    .nullish()
    .describe("What it answers: chat and completions, embeddings. Absent: generate."),
  promptLogprobs: z
    .boolean()
    .nullish()
    .describe("Whether requests for logprobs of the prompt are safe: there are engines that stop on one. Absent: they are."),
  updatedAt: isoTime,
});
export type EngineRecord = z.infer<typeof engineRecord>;

/** What Python's regular expressions have and JavaScript's do not; the trainer, which applies them, judges these. */
const onlyInPython = /\(\?(?:P[<=>]|[aiLmsux]|\(|#|>)|\\[AZ]|[*+?}]\+/;

/** Pure: what of this spec the engines can never serve. Empty: nothing found. */
export function judgeRunSpec(spec: RunSpec, engines: readonly EngineRecord[]): Problem[] {
  const engine = engines.find((candidate) => candidate.base.name === spec.base);
  if (engine === undefined) {
    const known = engines.map((candidate) => candidate.base.name).sort();
    return [
      {
        code: "BASE_UNKNOWN",
        param: "base",
        message: `base "${spec.base}" is not served here. ${known.length === 0 ? "No engine is registered yet." : `Known bases: ${known.join(", ")}.`}`,
      },
    ];
  }
  const problems: Problem[] = [];
  if (spec.canary !== undefined && spec.promote !== "canary") {
    problems.push({
      code: "CANARY_UNUSED",
      param: "canary",
      message: `canary has settings, but promote is "${spec.promote}", which does not use them. Set promote: canary, or remove canary.`,
    });
  }
  const ranks: [string, number][] = [["lora.r", spec.lora.r]];
  for (const [pattern, rank] of Object.entries(spec.lora.rank_pattern ?? {})) ranks.push([`lora.rank_pattern.${pattern}`, rank]);
  for (const [param, rank] of ranks) {
    if (rank > engine.maxLoraRank) {
      problems.push({
        code: "RANK_TOO_HIGH",
        param,
        message: `${param} is ${rank}, but engine "${engine.engine}" serves ranks up to ${engine.maxLoraRank}. Lower it, or raise the engine's max_lora_rank.`,
      });
    }
  }
  if (spec.tokenize.max_length > engine.maxModelLen) {
    problems.push({
      code: "MAX_LENGTH_TOO_HIGH",
      param: "tokenize.max_length",
      message: `tokenize.max_length is ${spec.tokenize.max_length}, but engine "${engine.engine}" serves sequences up to ${engine.maxModelLen} tokens. Lower it, or raise the engine's max_model_len.`,
    });
  }
  for (const [param, value] of [
    ["lora.target_modules", spec.lora.target_modules],
    ["lora.exclude_modules", spec.lora.exclude_modules],
  ] as const) {
    if (typeof value !== "string" || onlyInPython.test(value)) continue;
    try {
      new RegExp(value);
    } catch (error) {
      problems.push({
        code: "TARGET_MODULES_INVALID",
        param,
        message: `${param} "${value}" is not a valid regular expression: ${(error as Error).message}. Give a list of module names, a valid regular expression, or "all-linear".`,
      });
    }
  }
  return problems;
}
