/** The linear modules of a base, small enough to be kept in a record: a 30-layer model has seven entries. */
import { moduleInWrapper, wrapperOf } from "./architectures.ts";
import type { BaseModules } from "@loraline/contracts";

/** Name to [outputs, inputs]. */
export type ModuleShapes = ReadonlyMap<string, readonly [number, number]>;

/** Tensors with two dimensions that are not linear layers. No engine can serve an adapter on them. */
const embeddings = /(?:^|\.)(?:embed_tokens|word_embeddings|embed_in|embed_out|embed_positions|position_embeddings|wte|wpe|lm_head)$/;

/** Experts, which are no linear modules of their own, and the routers that choose among them. */
const experts = /\.experts\.|\.(?:mlp|feed_forward|block_sparse_moe)\.(?:gate|router)$|\.(?:shared_expert_gate)$/;

/**
 * Pure: finds the linear modules of a model, without experts, by the tensors of its files.
 * @param config - the model's config.json.
 * @returns undefined when the names in the files are not those of the modules: quantised weights, models with several parts that are not known.
 */
export function modulesOfBase(tensors: readonly { name: string; shape: readonly number[] }[], config: unknown): BaseModules | undefined {
  const settings = typeof config === "object" && config !== null ? (config as Record<string, unknown>) : {};
  const wrapper = wrapperOf(config);
  const unclear = ["quantization_config", ...(wrapper === undefined ? ["vision_config", "text_config"] : [])];
  if (unclear.some((field) => settings[field] !== undefined && settings[field] !== null)) return undefined;
  const shapes = new Map<string, readonly [number, number]>();
  for (const { name, shape } of tensors) {
    const stored = /^(.+)\.weight$/.exec(name)?.[1];
    const module = stored === undefined || wrapper === undefined ? stored : moduleInWrapper(stored, wrapper);
    const [outputs, inputs] = shape;
    if (
      module === undefined ||
      shape.length !== 2 ||
      outputs === undefined ||
      inputs === undefined ||
      embeddings.test(module) ||
      experts.test(module)
    )
      continue;
    shapes.set(module, [outputs, inputs]);
  }
  return shapes.size === 0 ? undefined : compactModules(shapes);
}

const number = /^\d+$/;

/** Joins names that differ in one number only, and have equal shapes, to one entry. */
export function compactModules(shapes: ModuleShapes): BaseModules {
  const groups = new Map<string, { before: string[]; after: string[]; shape: readonly [number, number]; numbers: number[] }>();
  for (const [name, shape] of shapes) {
    const parts = name.split(".");
    const at = parts.findIndex((part) => number.test(part));
    const [before, after] = at < 0 ? [parts, []] : [parts.slice(0, at), parts.slice(at + 1)];
    const key = JSON.stringify([before, at < 0 ? null : after, shape]);
    const group = groups.get(key) ?? { before, after, shape, numbers: [] };
    if (at >= 0) group.numbers.push(Number(parts[at]));
    groups.set(key, group);
  }
  return [...groups.values()].map(({ before, after, shape: [outputs, inputs], numbers }) => ({
    names: [...before, ...(numbers.length === 0 ? [] : [`{${rangesOf(numbers)}}`]), ...after].join("."),
    shape: [outputs, inputs],
  }));
}

function rangesOf(numbers: number[]): string {
  const sorted = numbers.toSorted((a, b) => a - b);
  const ranges: [number, number][] = [];
  for (const value of sorted) {
    const last = ranges.at(-1);
    if (last !== undefined && value === last[1] + 1) last[1] = value;
    else ranges.push([value, value]);
  }
  return ranges.map(([from, to]) => (from === to ? String(from) : `${from}-${to}`)).join(",");
}

export function expandModules(modules: BaseModules): Map<string, readonly [number, number]> {
  const shapes = new Map<string, readonly [number, number]>();
  for (const { names, shape } of modules) {
    const ranges = /\{([\d,-]+)\}/.exec(names);
    if (ranges === null) {
      shapes.set(names, shape);
      continue;
    }
    for (const range of (ranges[1] ?? "").split(",")) {
      const [from = 0, to = from] = range.split("-").map(Number);
      for (let value = from; value <= to; value++) {
        shapes.set(names.slice(0, ranges.index) + value + names.slice(ranges.index + ranges[0].length), shape);
      }
    }
  }
  return shapes;
}
