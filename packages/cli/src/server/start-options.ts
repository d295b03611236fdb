/** Options of the commands that start a server on this machine: `up` and `demo`. */
import { existsSync } from "node:fs";
import { join, resolve } from "node:path";
import { engineOptions, type EngineOptions, type LineSettings, lineSettings, localEngines } from "@loraline/local/local-engines";
import { type Command, InvalidArgumentError, Option } from "commander";
import { type CommandTools, defaultBase, wholeNumber } from "../command.ts";
import { parseYaml, readText, type YamlKind } from "../yaml-file.ts";

export interface StartFlags extends EngineOptions {
  base?: string[];
  bases: string;
  config?: string;
  slots: number;
  tenant: string;
  quotas?: string;
}

/**
 * Settings of engines that have a flag, which is called as vLLM's own. Values are judged as in loraline.yaml. A setting more is a line here,
 * and one in `engineOptions`.
 */
const engineFlags = {
  maxLoraRank: ["--max-lora-rank <r>", "highest rank of an adapter (default: 32)"],
  maxModelLen: ["--max-model-len <tokens>", "context, prompt and answer together (default: 2048)"],
  maxLoras: ["--max-loras <n>", "adapters that are computed at once (default: 4)"],
  maxCpuLoras: ["--max-cpu-loras <n>", "adapters that are held (default: 16)"],
  dtype: ["--dtype <type>", "auto, bfloat16 or float32 (default: what this processor is fast in)"],
  toolCallParser: ["--tool-call-parser <name>", "vLLM's parser of calls of tools, or none (default: by the base's chat template)"],
} as const satisfies Partial<Record<keyof EngineOptions, readonly [flag: string, words: string]>>;
const engineFlagNames = Object.keys(engineFlags) as (keyof typeof engineFlags)[];

/** @throws InvalidArgumentError with the values that there are */
const engineValue =
  (name: keyof typeof engineFlags) =>
  (text: string): unknown => {
    const parsed = engineOptions.shape[name].safeParse(/^\d+$/.test(text) ? Number(text) : text);
    if (parsed.success) return parsed.data;
    throw new InvalidArgumentError(engineOptions.shape[name].unwrap().description ?? String(parsed.error.issues[0]?.message));
  };

const engineOptionsOf = (flags: StartFlags): EngineOptions =>
  Object.fromEntries(engineFlagNames.flatMap((name) => (flags[name] === undefined ? [] : [[name, flags[name]]])));

const addEngineFlags = (command: Command): Command =>
  engineFlagNames.reduce((made, name) => {
    const [flag, words] = engineFlags[name];
    const option = new Option(flag, words).argParser(engineValue(name));
    return made.addOption(name === "toolCallParser" ? option.env("LORALINE_TOOL_CALL_PARSER") : option);
  }, command);

const several = (text: string, earlier: readonly string[] | undefined): string[] => [...(earlier ?? []), ...text.split(",")];

export const basesOption = (root: string): Option =>
  new Option("--bases <dir>", "where the bases are").env("LORALINE_BASES_DIR").default(join(root, ".loraline/bases"), ".loraline/bases");

export const withStartOptions = (command: Command, { root }: CommandTools): Command =>
  addEngineFlags(
    command
      .addOption(
        new Option("--base <name>", `base to serve; may be repeated: each has its engine (default: ${defaultBase})`)
          .env("LORALINE_BASE")
          .argParser(several),
      )
      .addOption(basesOption(root))
      .addOption(
        new Option("--config <loraline.yaml>", "engines and their settings (default: loraline.yaml here, if there is one)").env(
          "LORALINE_CONFIG",
        ),
      )
      .addOption(new Option("--slots <n>", "trainings at once").env("LORALINE_SLOTS").default(1).argParser(wholeNumber(1))),
  )
    .addOption(new Option("--tenant <name>", "tenant of the server's API key").env("LORALINE_TENANT").default("local"))
    .addOption(new Option("--quotas <json>", 'what tenants may have at most, as {"default": {"datasets": 100}}').env("LORALINE_QUOTAS"));

/** What `startLine` needs, without what the two commands differ in. @throws Failure LINE_FILE_UNREADABLE, LINE_FILE_INVALID */
export const startOptionsOf = async (flags: StartFlags, { root, node, env, pid }: CommandTools) => ({
  basesDir: resolve(flags.bases),
  cacheDir: join(root, ".loraline/cache"),
  engines: localEngines({
    bases: flags.base ?? [],
    flags: engineOptionsOf(flags),
    file: await readLineFile(flags.config),
    fallback: defaultBase,
  }),
  tenant: flags.tenant,
  slots: flags.slots,
  node,
  python: env.LORALINE_PYTHON ?? join(root, ".venv/bin/python"),
  nats: env.LORALINE_NATS_SERVER ?? join(root, ".venv/bin/nats-server"),
  env: { ...env, ...(flags.quotas === undefined ? {} : { LORALINE_QUOTAS: flags.quotas }) },
  pid,
  otlpEndpoint: env.OTEL_EXPORTER_OTLP_ENDPOINT,
  logLevel: env.LOG_LEVEL,
});

const kind: YamlKind = { unreadable: "LINE_FILE_UNREADABLE", invalid: "LINE_FILE_INVALID", fields: "sections" };

/** @param path - undefined: `loraline.yaml` in the working directory; none is no error. */
async function readLineFile(path: string | undefined): Promise<LineSettings> {
  const file = path ?? "loraline.yaml";
  if (path === undefined && !existsSync(file)) return {};
  return parseYaml(await readText(file, kind), file, lineSettings, kind).value;
}
