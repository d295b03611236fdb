/** What one kind of engine brings along; an entry of table.ts. */
import type { EngineSettings, Problem } from "@loraline/contracts";
import type { ServedParts } from "@loraline/models";
import type { BaseConfig } from "./base-config.ts";
import type { EngineConnection, LoraEngine } from "./lora-engine.ts";

export interface EngineKind {
  /** What people call it, for messages: "vLLM". */
  product: string;
  connect(connection: EngineConnection): LoraEngine;
  /** Pure: which of these settings can never work with this base. Empty: nothing was found. */
  judgeSettings(settings: EngineSettings, base: BaseConfig, processor: ReadonlySet<string>): Problem[];
  /** Pure: the parser of calls of tools that fits a base's chat template (null: it has none). null: no parser, so tools are refused. */
  toolCallParserOf(template: string | null): string | null;
  /** Files that the engine is started with, by name, beside `chat_template.jinja`, which each kind gets. */
  startFiles(start: { toolCallParser: string | null; parts: ServedParts }): Promise<Record<string, string>>;
}
