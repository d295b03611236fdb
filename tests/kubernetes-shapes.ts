/** Schemas of Kubernetes' own objects for the chart's values, from an API server's OpenAPI. Pure. */
import { resourceName } from "../packages/contracts/src/generate/kubernetes-shapes.ts";

type Json = Record<string, unknown>;

/** Schemas that are taken, with all that they refer to. */
const takenShapes: readonly string[] = [
  "io.k8s.api.core.v1.PodTemplateSpec",
  "io.k8s.api.autoscaling.v2.MetricSpec",
  "io.k8s.api.networking.v1.NetworkPolicyPeer",
  "io.k8s.api.networking.v1.NetworkPolicyEgressRule",
];

/**
 * The schemas of an API server, as the chart needs them: a key that Kubernetes does not know is refused. What an object needs is left to the
 * API server, because values are parts that the chart merges into its own objects.
 * @param documents - of `/openapi/v3/…`.
 */
export function shapesOf(documents: readonly { components: { schemas: Record<string, Json> } }[]): Record<string, Json> {
  const all: Record<string, Json> = Object.assign({}, ...documents.map(({ components }) => components.schemas));
  const taken = new Map<string, Json>();
  const take = (name: string): void => {
    if (taken.has(name)) return;
    const schema = all[name];
    if (schema === undefined) throw new Error(`the API server has no schema ${name}`);
    taken.set(name, {});
    taken.set(name, strict(schema, take));
  };
  for (const name of takenShapes) take(name);
  return Object.fromEntries([...taken].sort(([a], [b]) => (a < b ? -1 : 1)));
}

function strict(schema: Json, take: (name: string) => void): Json {
  const { $ref: ref, allOf, properties, items, additionalProperties, type, oneOf, enum: values } = schema;
  // OpenAPI writes a reference with a default or a description as `allOf` of one.
  const reference = ref ?? (allOf as Json[] | undefined)?.[0]?.["$ref"];
  if (typeof reference === "string") {
    const name = reference.replace(/^.*\//, "");
    take(name);
    return { $ref: `#/definitions/${name}` };
  }
  const made: Json = { ...(type === undefined ? {} : { type }), ...(oneOf === undefined ? {} : { oneOf }) };
  // An empty text stands for "not set" in some of Kubernetes' own types.
  if (values !== undefined) made["enum"] = values;
  if (items !== undefined) made["items"] = strict(items as Json, take);
  if (typeof additionalProperties === "object") made["additionalProperties"] = strict(additionalProperties as Json, take);
  if (properties === undefined) return made;
  made["properties"] = Object.fromEntries(
    Object.entries(properties as Record<string, Json>).map(([name, of]) => {
      const own = strict(of, take);
      const isQuantities =
        (own["additionalProperties"] as Json | undefined)?.["$ref"] === "#/definitions/io.k8s.apimachinery.pkg.api.resource.Quantity";
      return [name, isQuantities ? { ...own, propertyNames: { pattern: resourceName.source } } : own];
    }),
  );
  made["additionalProperties"] = false;
  return made;
}
