/** What one kind of engine brings along; an entry of table.ts. */
import type { EngineSettings, Problem } from "@loraline/contracts";
import type { BaseConfig } from "./base-config.ts";
import type { EngineConnection, LoraEngine } from "./lora-engine.ts";

export interface EngineKind {
  /** What people call it, for messages: "vLLM". */
  product: string;
  connect(connection: EngineConnection): LoraEngine;
  /** Pure: which of these settings can never work with this base. Empty: nothing was found. */
  judgeSettings(settings: EngineSettings, base: BaseConfig): Problem[];
  /** Files that the engine is started with, by name, beside `chat_template.jinja`, which each kind gets. */
  startFiles(): Promise<Record<string, string>>;
}
