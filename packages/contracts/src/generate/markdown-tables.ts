/** Pure: tables of generated pages, and what a schema allows in words. */
import { shapeKey } from "./kubernetes-shapes.ts";

type Json = Record<string, unknown>;

const cell = (text: string): string => text.replaceAll("|", "\\|").replaceAll("\n", " ");
export const code = (value: unknown): string => `\`${typeof value === "string" && value !== "" ? value : JSON.stringify(value)}\``;
export const table = (head: readonly string[], rows: readonly (readonly string[])[]): string =>
  [head, head.map(() => "---"), ...rows].map((row) => `| ${row.map(cell).join(" | ")} |`).join("\n");

/** The values that a JSON Schema allows, in a few words. */
export function valuesOf(schema: Json): string {
  const shape = schema[shapeKey] as string | undefined;
  if (shape !== undefined) return `${code(shape.split(".").at(-1))} of Kubernetes`;
  const variants = (schema["anyOf"] ?? schema["oneOf"]) as Json[] | undefined;
  if (variants !== undefined) return [...new Set(variants.map(valuesOf))].join(" or ");
  if (schema["const"] !== undefined) return code(schema["const"]);
  if (schema["enum"] !== undefined) return (schema["enum"] as unknown[]).map(code).join(", ");
  const { type } = schema;
  if (Array.isArray(type)) return type.map((one) => valuesOf({ ...schema, type: one as unknown })).join(" or ");
  if (type === "array") return `list of: ${valuesOf(schema["items"] as Json)}`;
  if (type === "object") {
    const { properties, additionalProperties } = schema as { properties?: Json; additionalProperties: Json };
    return properties === undefined
      ? `map to: ${valuesOf(additionalProperties)}`
      : `object of ${Object.keys(properties).map(code).join(", ")}`;
  }
  if (type === "string") return "text";
  if (type === "boolean") return "true or false";
  if (type === "null") return code(null);
  const bounds = (["≥ minimum", "> exclusiveMinimum", "≤ maximum", "< exclusiveMaximum"] as const).flatMap((said) => {
    const [sign = "", name = ""] = said.split(" ");
    const bound = schema[name];
    return typeof bound !== "number" || Math.abs(bound) === Number.MAX_SAFE_INTEGER ? [] : [`${sign} ${bound}`];
  });
  const kind = type === "integer" ? "whole number" : type === "number" ? "number" : "any";
  return [kind, ...bounds].join(" ");
}
