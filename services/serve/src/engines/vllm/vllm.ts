/** vLLM as an engine of Loraline. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { EngineKind } from "../engine-kind.ts";
import { createVllmClient } from "./client.ts";
import { judgeVllmSettings } from "./judge-settings.ts";
import { pictureFlags } from "./start.ts";
import { vllmToolParserOf } from "./tool-parsers.ts";

const guard = "loraline_guard.py";

export const vllm: EngineKind = {
  product: "vLLM",
  connect: createVllmClient,
  judgeSettings: judgeVllmSettings,
  toolCallParserOf: vllmToolParserOf,
  startFiles: async ({ toolCallParser, parts }) => ({
    [guard]: await readFile(join(import.meta.dirname, guard), "utf8"),
    // Given with --config. JSON is YAML, too.
    "vllm.yaml": JSON.stringify({
      ...(toolCallParser === null ? {} : { "enable-auto-tool-choice": true, "tool-call-parser": toolCallParser }),
      ...(parts.languageModelOnly ? { "language-model-only": true } : {}),
      ...pictureFlags(parts),
      ...(parts.loraModules === null ? {} : { "lora-target-modules": parts.loraModules }),
    }),
  }),
};
