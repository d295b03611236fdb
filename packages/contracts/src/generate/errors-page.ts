/** Pure: makes docs/errors.md from the table of codes. */
import { codeAreas } from "../codes/codes.ts";
import type { Audience, CodeEntry } from "../codes/define-area.ts";

const doneBy: Readonly<Record<Audience, string>> = { user: "you", operator: "the operator", developer: "a developer" };

export function errorsPage(): string {
  const slug = (title: string): string =>
    title
      .toLowerCase()
      .replace(/[^a-z0-9 -]/g, "")
      .replaceAll(" ", "-");
  const cell = (text: string): string => text.replaceAll("|", "\\|");
  const row = ([code, { audience, meaning, remedy }]: [string, CodeEntry]): string =>
    `| <a id="${code}"></a>\`${code}\` | ${cell(meaning)} | ${cell(remedy)} | ${doneBy[audience]} |`;
  const sections = codeAreas.map(({ title, where, sources, codes }) => {
    const rows = Object.entries<CodeEntry>(codes).toSorted(([a], [b]) => (a < b ? -1 : 1));
    return `## ${title}\n\nWhere they come from: ${where}. In the code: ${sources}.\n\n| Code | Meaning | What to do | Who can do it |\n| --- | --- | --- | --- |\n${rows.map(row).join("\n")}\n`;
  });
  return `<!-- Generated from packages/contracts/src/codes by \`make generate\`. -->

# Error codes

Every error, warning and waiting state carries one of these codes: in the \`code\` of an HTTP answer, beside each message that \`loraline\` prints, in
events, in a dataset's report, and as the reason of a condition in Kubernetes. Codes do not change; messages may. The message says which
file, line or field is meant; this page says what the code means. \`loraline explain CODE\` prints one entry. To link to one, add its code to
the address of this page: \`errors.md#SPEC_INVALID\`.

${codeAreas.map(({ title }) => `- [${title}](#${slug(title)})`).join("\n")}

${sections.join("\n")}`;
}
