/**
 * Whether a replica renders conversations as they were trained: the ids that it makes of the probe in KV `engines` must be the ids that
 * stand there. This finds an engine that was started with another chat template or another tokenizer.
 */
import type { EngineRecord, Problem } from "@loraline/contracts";
import type { Log } from "@loraline/runtime";
import { EngineRefusedError, type LoraEngine } from "../engines/lora-engine.ts";

interface TemplateCheckDeps {
  client: Pick<LoraEngine, "renderTemplate" | "detokenize">;
  base: string;
  /** undefined: the engine is not registered yet. */
  engine(): Promise<Pick<EngineRecord, "engine" | "templateDigest" | "templateProbe"> | undefined>;
  log: Log;
}

/**
 * @returns what is wrong; null: nothing is known to be.
 * @throws EngineUnknownError when the engine gave no answer.
 */
export async function checkTemplate({ client, base, engine, log }: TemplateCheckDeps): Promise<Problem | null> {
  const record = await engine();
  const probe = record?.templateProbe;
  if (record === undefined || probe === null || probe === undefined) return null;
  let theirs: number[];
  try {
    theirs = await client.renderTemplate(base, probe.messages);
  } catch (error) {
    if (!(error instanceof EngineRefusedError)) throw error;
    log.warn({ err: error }, "the engine does not say how it presents a conversation; its chat template is not checked");
    return null;
  }
  if (theirs.length === probe.input_ids.length && theirs.every((id, index) => id === probe.input_ids[index])) return null;
  const text = await client.detokenize(base, theirs).catch(() => undefined);
  return {
    code: "TEMPLATE_MISMATCH",
    param: "chat_template",
    message:
      `this replica applies another chat template or tokenizer than engine "${record.engine}" is registered with (${record.templateDigest ?? "unknown"}): ` +
      `for the same conversation it makes ${text === undefined ? `the tokens [${theirs.join(" ")}]` : JSON.stringify(text)}, where ${JSON.stringify(probe.text)} was trained. ` +
      "Start it with --chat-template and the base's own file.",
  };
}
