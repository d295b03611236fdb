/** Options of the commands that start a server on this machine: `up` and `demo`. */
import { join, resolve } from "node:path";
import { type Command, Option } from "commander";
import { type CommandTools, defaultBase, wholeNumber } from "../command.ts";

export interface StartFlags {
  base: string;
  bases: string;
  slots: number;
  tenant: string;
  quotas?: string;
  toolCallParser?: string;
}

export const withStartOptions = (command: Command, { root }: CommandTools): Command =>
  command
    .addOption(new Option("--base <name>", "base that the engine serves").env("LORALINE_BASE").default(defaultBase))
    .addOption(
      new Option("--bases <dir>", "where the bases are")
        .env("LORALINE_BASES_DIR")
        .default(join(root, ".loraline/bases"), ".loraline/bases"),
    )
    .addOption(new Option("--slots <n>", "trainings at once").env("LORALINE_SLOTS").default(1).argParser(wholeNumber(1)))
    .addOption(
      new Option("--tool-call-parser <name>", "vLLM's parser of calls of tools, or none (default: by the base's chat template)").env(
        "LORALINE_TOOL_CALL_PARSER",
      ),
    )
    .addOption(new Option("--tenant <name>", "tenant of the server's API key").env("LORALINE_TENANT").default("local"))
    .addOption(new Option("--quotas <json>", 'what tenants may have at most, as {"default": {"datasets": 100}}').env("LORALINE_QUOTAS"));

/** What `startLine` needs, without what the two commands differ in. */
export const startOptionsOf = (
  { base, bases, slots, tenant, quotas, toolCallParser }: StartFlags,
  { root, node, env, pid }: CommandTools,
) => ({
  basesDir: resolve(bases),
  cacheDir: join(root, ".loraline/cache"),
  base,
  tenant,
  slots,
  toolCallParser,
  node,
  python: env.LORALINE_PYTHON ?? join(root, ".venv/bin/python"),
  nats: env.LORALINE_NATS_SERVER ?? join(root, ".venv/bin/nats-server"),
  env: { ...env, ...(quotas === undefined ? {} : { LORALINE_QUOTAS: quotas }) },
  pid,
  otlpEndpoint: env.OTEL_EXPORTER_OTLP_ENDPOINT,
  logLevel: env.LOG_LEVEL,
});
