/** Pure: makes `docs/run-spec.md` from the schema and the tables: every field of the run spec, and how pasted fields are treated. */
import { z } from "zod";
import type { JudgedField, JudgedFields } from "../spec/judged-fields.ts";
import { judgedLoraFields, ownLoraDefaults } from "../spec/lora-fields.ts";
import { runSpecFields } from "../spec/run-spec.ts";
import { judgedTrainingFields, ownTrainingDefaults, schedules } from "../spec/training-fields.ts";
import { code, table, valuesOf } from "./markdown-tables.ts";

type Json = Record<string, unknown>;

const sections = ["lora", "training", "tokenize", "canary"];

function fieldsTable(schema: Json): string {
  const properties = Object.entries((schema["properties"] ?? {}) as Record<string, Json>);
  const required = (schema["required"] ?? []) as string[];
  return table(
    ["Field", "Values", "Default", "Meaning"],
    properties.map(([name, of]) => [
      code(name),
      sections.includes(name) ? "section below" : valuesOf(of),
      sections.includes(name) ? "" : of["default"] !== undefined ? code(of["default"]) : required.includes(name) ? "required" : "",
      `${of["deprecated"] === true ? "Deprecated. " : ""}${(of["description"] as string | undefined) ?? ""}`,
    ]),
  );
}

/** Rows of a table; fields with the same reason share a row. */
function rowsOf(fields: JudgedFields, as: JudgedField["as"], cells: (field: JudgedField) => string[]): string[][] {
  const rows = new Map<string, { names: string[]; cells: string[] }>();
  for (const [name, field] of Object.entries(fields)) {
    if (field.as !== as) continue;
    const said = cells(field);
    const row = rows.get(said.join("\n")) ?? { names: [], cells: said };
    row.names.push(code(name));
    rows.set(said.join("\n"), row);
  }
  return [...rows.values()].map(({ names, cells: said }) => [names.join(", "), ...said]);
}

const silentValues = ({ silent }: JudgedField): string => silent.map(code).join(", ");

function judgedTables(fields: JudgedFields): string[] {
  const moved = rowsOf(fields, "moved", (field) => (field.as === "moved" ? [code(field.to), field.why] : []));
  return [
    ...(moved.length === 0 ? [] : ["**Taken as another field:**", table(["Field", "Is here", "Why"], moved)]),
    "**Change nothing here:**",
    table(
      ["Field", "Why"],
      rowsOf(fields, "neutral", (field) => [field.why]),
    ),
    "**Refused**, unless the value is one of those that mean nothing (`null` always does):",
    table(
      ["Field", "Why", "What to do", "Mean nothing"],
      rowsOf(fields, "refused", (field) => (field.as === "refused" ? [field.why, field.remedy, silentValues(field)] : [])),
    ),
  ];
}

const own = (of: string, defaults: Readonly<Record<string, string>>): string =>
  `Defaults are those of ${of}, but for ${Object.entries(defaults)
    .map(([name, why]) => `${code(name)} (${why})`)
    .join(", ")}.`;

export function runSpecPage(): string {
  const root = z.toJSONSchema(runSpecFields, { target: "draft-2020-12", io: "input", reused: "inline" }) as Json;
  const properties = root["properties"] as Record<string, Json>;
  const section = (name: string): string => fieldsTable(properties[name] as Json);
  return [
    "<!-- Generated from packages/contracts/src/spec by `make generate`. -->",
    "# The run spec",
    "What a run is asked for, whichever way it is asked: `extra_body.loraline` of a fine-tuning job, `run.yaml`, the `spec` of a `FineTune`, the event `run.requested`. A field that is misspelt is an error, and so is a value that is out of range.",
    fieldsTable(root),
    "## lora",
    `The fields of PEFT's \`LoraConfig\` that an engine can serve, by their own names. ${own("PEFT", ownLoraDefaults)}`,
    section("lora"),
    "## training",
    `Fields of transformers' \`TrainingArguments\`, by their own names. ${own("transformers", ownTrainingDefaults)}`,
    section("training"),
    `Arguments that the schedules take in \`lr_scheduler_kwargs\`: ${Object.entries(schedules)
      .filter(([, known]) => known.length > 0)
      .map(([name, known]) => `${code(name)}: ${known.map(code).join(", ")}`)
      .join("; ")}.`,
    "## tokenize",
    section("tokenize"),
    "## canary",
    section("canary"),
    "## A configuration can be pasted",
    "The blocks that people have, `LoraConfig(...)` under `lora`, `TrainingArguments(...)` or trl's `SFTConfig(...)` under `training`, are taken as they are. Every field of these classes either works (above), is taken as another field, changes nothing, or is refused with the reason, because to drop it would change the result without a word. What is told is in `loraline.notices` of the job, in its first event, printed by `loraline run`, and an Event of the FineTune; values that mean the default are not told.",
    "### LoraConfig",
    ...judgedTables(judgedLoraFields),
    "### TrainingArguments and SFTConfig",
    ...judgedTables(judgedTrainingFields),
    "",
  ].join("\n\n");
}
