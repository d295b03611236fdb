/** vLLM as an engine of Loraline. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { EngineKind } from "../engine-kind.ts";
import { createVllmClient } from "./client.ts";
import { judgeVllmSettings } from "./judge-settings.ts";

const guard = "loraline_guard.py";

export const vllm: EngineKind = {
  product: "vLLM",
  connect: createVllmClient,
  judgeSettings: judgeVllmSettings,
  startFiles: async () => ({ [guard]: await readFile(join(import.meta.dirname, guard), "utf8") }),
};
