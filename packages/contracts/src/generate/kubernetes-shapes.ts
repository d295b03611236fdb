/**
 * Schemas of Kubernetes' own objects, for what the chart's values hand through to pods and policies. They come from an API server's OpenAPI:
 * `tests/chart.cluster.test.ts` compares them with the API server that tests run (tests/kubernetes-shapes.ts), and writes kubernetes-shapes.json
 * anew with `-u`. Pure.
 */
import shapes from "./kubernetes-shapes.json" with { type: "json" };

type Json = Record<string, unknown>;
/** Name of a schema in the OpenAPI. */
export type KubernetesShape = keyof typeof shapes;
/** Marks, in a schema that zod made, the place of one of Kubernetes' schemas. */
export const shapeKey = "x-kubernetes-shape";

/** Kubernetes' own resources, and those with a domain, as devices have. */
export const resourceName = /^(cpu|memory|ephemeral-storage|hugepages-.+|.+\/.+)$/;

/** @param schema - that zod made. @returns it with references to Kubernetes' schemas, and with these. */
export function withKubernetes(schema: Json): Json {
  const replaced = (node: unknown): unknown => {
    if (Array.isArray(node)) return node.map(replaced);
    if (typeof node !== "object" || node === null) return node;
    const shape = (node as Json)[shapeKey];
    if (typeof shape === "string") return { $ref: `#/definitions/${shape}` };
    return withKeys(Object.fromEntries(Object.entries(node).map(([key, value]) => [key, replaced(value)])));
  };
  return { ...(replaced(schema) as Json), definitions: replaced(shapes) };
}

/** Says which keys there may be in a way of which Helm's messages tell the right path; of `propertyNames` they tell another one. */
function withKeys(schema: Json): Json {
  const { propertyNames, additionalProperties, ...rest } = schema;
  const { pattern, enum: names } = (propertyNames ?? {}) as { pattern?: string; enum?: string[] };
  if (pattern !== undefined) return { ...rest, patternProperties: { [pattern]: additionalProperties }, additionalProperties: false };
  if (names !== undefined)
    return { ...rest, properties: Object.fromEntries(names.map((name) => [name, additionalProperties])), additionalProperties: false };
  return schema;
}
