/** Describes engines by the chart's settings and their bases' files: for serve, and for an engine before it starts. */
import { mkdir, readFile, rename, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import {
  defaultEngineKind,
  type EngineRecord,
  type ComputeType,
  type EngineSettings,
  engineSettingsList,
  type Problem,
  unreadDigest,
} from "@loraline/contracts";
import { readServedParts } from "@loraline/models";
import { readBaseOrigin, readBaseRef } from "@loraline/models/base-ref";
import { messageOf, PermanentError, processorFlags } from "@loraline/runtime";
import { z } from "zod";
import { createBases, describeTemplate, readTemplate } from "@loraline/tokens";
import { type BaseConfig, baseConfig } from "../engines/base-config.ts";
import type { EngineKind } from "../engines/engine-kind.ts";
import { engines } from "../engines/table.ts";
import { roundsItself } from "../engines/vllm/judge-settings.ts";
import { readTwin } from "./read-twin.ts";

/**
 * @param without - what there is where the file is absent
 * @throws PermanentError ENGINES_INVALID with every problem
 */
export async function readEngineSettings(file: string, without?: EngineSettings[]): Promise<EngineSettings[]> {
  const invalid = (why: string, cause?: unknown): PermanentError =>
    new PermanentError("ENGINES_INVALID", `${file} does not say what engines there are: ${why}`, { param: "ENGINES_CONFIG", cause });
  let given: unknown;
  try {
    given = JSON.parse(await readFile(file, "utf8"));
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (without !== undefined && (code === "ENOENT" || code === "ENOTDIR")) return without;
    throw invalid(message, error);
  }
  const parsed = engineSettingsList.safeParse(given);
  if (!parsed.success) throw invalid(z.prettifyError(parsed.error).replaceAll("\n", " "));
  return parsed.data;
}

/**
 * Makes the record that serve registers for each engine. If a base cannot be read, the record of its engine has a `problem`
 * (BASE_MISSING, BASE_INVALID, BASE_FILES_MISSING, TOKENIZER_INVALID, BASE_UNREADABLE, TWIN_…), and the other engines are served nevertheless.
 */
export async function describeEngines(settings: readonly EngineSettings[], basesDir: string): Promise<Omit<EngineRecord, "updatedAt">[]> {
  const loadBase = createBases(basesDir);
  const described: Omit<EngineRecord, "updatedAt">[] = [];
  for (const own of settings) {
    const { engine, kind, base, maxLoraRank, maxLoras, maxCpuLoras, maxModelLen, dtype, tenants, tasks, promptLogprobs } = own;
    const aboutBase = async () => {
      const loaded = await loadBase(base);
      const toolCallParser = toolCallParserOf(own, loaded.template);
      const template = await describeTemplate(loaded);
      // A wrong declaration is told, and keeps what the base's own adapters need.
      const twin = await readTwin(basesDir, base, own.derivedFrom).then(
        (derivedFrom) => ({ derivedFrom }),
        (error: unknown) => ({ problem: problemOfBase(error, engine, base) }),
      );
      const { pictures } = await readServedParts(join(basesDir, base));
      return { base: loaded.ref, ...twin, toolCallParser, pictures, origin: await readBaseOrigin(join(basesDir, base)), ...template };
    };
    described.push({
      engine,
      kind,
      maxLoraRank,
      maxLoras,
      maxCpuLoras,
      maxModelLen,
      computeType: dtype === undefined ? undefined : computeTypes[dtype],
      rounded: isRounded(own),
      tenants: tenants?.length === 0 ? null : tenants,
      tasks,
      promptLogprobs,
      wake: own.wake && { ...own.wake, replicas: Math.max(1, own.replicas ?? 1), autoscaled: own.autoscaled },
      ...(await aboutBase().catch((error: unknown) => ({
        base: { name: base, revision: "unknown", digest: unreadDigest },
        problem: problemOfBase(error, engine, base),
      }))),
    });
  }
  return described;
}

/** Whether the engine is told to round what the base's files have in full. */
const isRounded = ({ quantization, kvCacheDtype }: EngineSettings): boolean =>
  kvCacheDtype?.startsWith("fp8") === true || roundsItself.has(quantization ?? "");

/** What the proof has limits for. `auto` is what the base's config.json says, which may be anything. */
const computeTypes: Partial<Record<NonNullable<EngineSettings["dtype"]>, ComputeType>> = {
  bfloat16: "bfloat16",
  float: "float32",
  float32: "float32",
};

/** Pure: the parser that an engine is started with. null: none. */
const toolCallParserOf = ({ kind, toolCallParser }: EngineSettings, template: string | null): string | null =>
  toolCallParser === "none" ? null : (toolCallParser ?? engines[kind ?? defaultEngineKind].toolCallParserOf(template));

const problemOfBase = (error: unknown, engine: string, base: string): Problem =>
  error instanceof PermanentError
    ? { code: error.code, message: `engine "${engine}": ${error.message}`, param: "base" }
    : { code: "BASE_UNREADABLE", message: `engine "${engine}": base "${base}" cannot be read: ${messageOf(error)}`, param: "base" };

/**
 * Checks one engine's settings against its base's files, and writes into `dir` the files with which it is started: `chat_template.jinja`,
 * the same template that training uses, and those that the kind of engine adds.
 * @throws PermanentError ENGINE_UNKNOWN, ENGINE_IMPOSSIBLE with every reason, BASE_MISSING, BASE_INVALID
 */
export async function prepareEngine({
  settings,
  engine,
  basesDir,
  dir,
}: {
  settings: readonly EngineSettings[];
  engine: string;
  basesDir: string;
  dir: string;
}): Promise<void> {
  const own = settings.find((each) => each.engine === engine);
  if (own === undefined) {
    const known = settings.map((each) => each.engine).join(", ") || "none";
    throw new PermanentError("ENGINE_UNKNOWN", `there is no engine "${engine}"; there are: ${known}.`, { param: "AGENT_ENGINE" });
  }
  const baseDir = join(basesDir, own.base);
  const kind = await checkEngine(own, baseDir);
  const template = await readTemplate(baseDir);
  await mkdir(dir, { recursive: true });
  await writeWhole(join(dir, "chat_template.jinja"), template ?? noTemplate(own.base));
  const files = await kind.startFiles({ toolCallParser: toolCallParserOf(own, template), parts: await readServedParts(baseDir) });
  for (const [name, text] of Object.entries(files)) await writeWhole(join(dir, name), text);
}

/**
 * Checks an engine's settings against its base's files, and this machine's processor, on which it is to run.
 * @throws PermanentError ENGINE_IMPOSSIBLE with every reason, BASE_MISSING, BASE_INVALID
 */
export async function checkEngine(settings: EngineSettings, baseDir: string): Promise<EngineKind> {
  const config = await readBaseConfig(baseDir).catch(ofEngine(settings.engine));
  const kind = engines[settings.kind ?? defaultEngineKind];
  const problems = kind.judgeSettings(settings, config, processorFlags());
  const [first] = problems;
  if (first !== undefined) {
    throw new PermanentError("ENGINE_IMPOSSIBLE", problems.map(({ code, message }) => `${code}: ${message}`).join(" "), {
      param: first.param ?? null,
    });
  }
  return kind;
}

/** Whether the weights of a base are stored in fewer bits. */
export const isQuantised = async (baseDir: string): Promise<boolean> => {
  const { quantization_config: own, compression_config: other } = await readBaseConfig(baseDir);
  return Boolean(own ?? other);
};

/** Reads config.json. Where it does not say how the weights are quantized, the files that GPTQ's and AWQ's tools write beside it are read too. */
async function readBaseConfig(dir: string): Promise<BaseConfig> {
  await readBaseRef(dir);
  const file = join(dir, "config.json");
  let config: BaseConfig;
  try {
    config = baseConfig.parse(JSON.parse(await readFile(file, "utf8")));
  } catch (error) {
    throw new PermanentError("BASE_INVALID", `${file} is not a model's configuration: ${(error as Error).message}`, {
      param: "base",
      cause: error,
    });
  }
  if (config.quantization_config !== null && config.quantization_config !== undefined) return config;
  for (const [name, quant_method] of [
    ["quantize_config.json", "gptq"],
    ["quant_config.json", "awq"],
  ] as const) {
    if (await readFile(join(dir, name)).catch(() => undefined)) return { ...config, quantization_config: { quant_method } };
  }
  return config;
}

/** The template for a base that has none. The engine always gets a file, so that it never applies another template than training does. */
const noTemplate = (base: string): string =>
  `{{ raise_exception("base ${base} has no chat template: ask for completions, or put chat_template.jinja beside its tokenizer") }}`;

const ofEngine =
  (engine: string) =>
  (error: unknown): never => {
    if (!(error instanceof PermanentError)) throw error;
    throw new PermanentError(error.code, `engine "${engine}": ${error.message}`, { param: error.param ?? null, cause: error });
  };

/** Writes a file so that it appears complete or not at all. */
export async function writeWhole(file: string, text: string): Promise<void> {
  await mkdir(dirname(file), { recursive: true });
  const partial = `${file}.partial`;
  await writeFile(partial, text);
  await rename(partial, file);
}
