/** The template that an engine must apply, and the check of the template that it does apply. */
import { type EngineRecord, longestTemplate, type Message, type Problem, type TemplateProbe } from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime";
import { encodePieces } from "../encoder/encode-pieces.ts";
import type { Base } from "../encoder/load-base.ts";
import { type ChatTemplate, recogniseTemplate } from "./recognise-template.ts";
import { createJinja } from "./render-jinja.ts";

type EngineTemplate = Pick<EngineRecord, "templateDigest" | "template" | "templateProbe">;

const asked: TemplateProbe["messages"] = [
  { role: "system", content: "Be brief." },
  { role: "user", content: "  What is 1 + 1? \n" },
  { role: "assistant", content: "2" },
  { role: "user", content: "你好 🦊" },
];

/** The description of a base's template that stands in the engine's record. */
export async function describeTemplate(base: Base): Promise<EngineTemplate> {
  const { template, templateDigest } = base;
  return {
    templateDigest,
    template: template !== null && template.length <= longestTemplate ? template : null,
    templateProbe: template === null ? null : await probe(base, template),
  };
}

async function probe(base: Base, source: string): Promise<TemplateProbe | null> {
  // A template that prints the day is not compared: the engine prints another day.
  if (source.includes("strftime_now")) return null;
  let found: ChatTemplate;
  try {
    found = await recogniseTemplate(base);
  } catch (error) {
    if (error instanceof PermanentError) return null; // reported when a run wants to train conversations
    throw error;
  }
  for (const messages of [asked, asked.slice(1)]) {
    try {
      const pieces = found.prompt({ messages });
      const [encoded] = await encodePieces(base, [pieces]);
      const text = pieces.map((piece) => ("text" in piece ? piece.text : piece.control)).join("");
      if (encoded !== undefined) return { messages, text, input_ids: [...encoded.ids] };
    } catch {
      // The template allows no system prompt.
    }
  }
  return null;
}

/** Whether an engine is known to apply another template than training does. */
export function judgeTemplate(base: Base, engines: readonly EngineRecord[]): Problem | undefined {
  const other = engines.find(
    ({ base: { name }, derivedFrom, templateDigest }) =>
      (name === base.ref.name || derivedFrom?.name === base.ref.name) &&
      typeof templateDigest === "string" &&
      templateDigest !== base.templateDigest,
  );
  if (other === undefined) return undefined;
  const [theirs, ours] = [other.template ?? null, base.template];
  const message =
    `engine "${other.engine}" applies another chat template than base "${base.ref.name}" has here, so the model would be asked otherwise than it was trained. ` +
    `The engine's (${other.templateDigest}) makes ${rendered(base, theirs)}; the base's (${base.templateDigest}) makes ${rendered(base, ours)}. ` +
    `${difference(theirs, ours)}Start the engine with --chat-template and the base's own file, or put the engine's template beside the tokenizer here.`;
  return { code: "TEMPLATE_MISMATCH", message, param: "base" };
}

/** Renders the test conversation by a template. */
function rendered(base: Base, template: string | null): string {
  if (template === null) return "nothing that is known here";
  try {
    const jinja = createJinja({ ...base, template }, new Set());
    const messages: Message[] = [
      { role: "system", content: "Be brief." },
      { role: "user", content: "Who are you?" },
    ];
    return JSON.stringify(jinja.unseal(jinja.text({ messages }, true)));
  } catch (error) {
    return `an error (${(error as Error).message})`;
  }
}

function difference(theirs: string | null, ours: string | null): string {
  if (theirs === null || ours === null) return "";
  let at = 0;
  while (at < theirs.length && theirs[at] === ours[at]) at++;
  const shown = (text: string): string => JSON.stringify(text.slice(Math.max(0, at - 40), at + 200));
  return `Their sources differ from character ${at + 1} on: ${shown(theirs)} there, ${shown(ours)} here. `;
}
