/** Pure: a run's spec as a flat list of names and values, as `run.yaml` would name them. */
import type { RunSpec } from "@loraline/contracts";

interface Setting {
  name: string;
  value: string;
}

const apart = new Set(["base", "adapter", "dataset", "notices"]);

export function settingsOf(spec: RunSpec): Setting[] {
  return flatten("", Object.fromEntries(Object.entries(spec).filter(([name]) => !apart.has(name)))).map(([name, value]) => ({
    name,
    value: typeof value === "string" ? value : JSON.stringify(value),
  }));
}

function flatten(path: string, value: unknown): [string, unknown][] {
  if (value === undefined || value === null) return [];
  if (typeof value !== "object" || Array.isArray(value)) return [[path, value]];
  return Object.entries(value).flatMap(([name, inner]) => flatten(path === "" ? name : `${path}.${name}`, inner));
}

/** Names of settings in which specs differ, with the value of each. */
export function differencesOf(specs: readonly RunSpec[]): { name: string; values: (string | undefined)[] }[] {
  const flat = specs.map(
    (spec) =>
      new Map([...settingsOf(spec).map(({ name, value }) => [name, value] as const), ["base", spec.base], ["dataset", spec.dataset ?? ""]]),
  );
  const names = [...new Set(flat.flatMap((one) => [...one.keys()]))];
  return names.map((name) => ({ name, values: flat.map((one) => one.get(name)) })).filter(({ values }) => new Set(values).size > 1);
}
