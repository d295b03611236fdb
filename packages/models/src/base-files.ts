/** Reads a base's modules from its folder. */
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import type { BaseModules } from "@loraline/contracts";
import { expandModules, type ModuleShapes, modulesOfBase } from "./base-modules.ts";
import { packingOf, unpackedTensors } from "./quantised-tensors.ts";
import { readTensors } from "./safetensors.ts";

/** @returns undefined when the files cannot be read here, or the names in the files are not those of the modules. Then nothing is judged by them. */
export async function describeBase(dir: string): Promise<BaseModules | undefined> {
  try {
    const shards = (await readdir(dir)).filter((name) => name.endsWith(".safetensors"));
    const tensors = (await Promise.all(shards.map((name) => readTensors(join(dir, name))))).flat();
    const config = JSON.parse(await readFile(join(dir, "config.json"), "utf8")) as Record<string, unknown>;
    const packing = packingOf(config);
    return packing === undefined
      ? modulesOfBase(tensors, config)
      : modulesOfBase(unpackedTensors(tensors, packing), { ...config, quantization_config: null });
  } catch {
    return undefined;
  }
}

export async function readBaseModules(dir: string): Promise<ModuleShapes | undefined> {
  const modules = await describeBase(dir);
  return modules && expandModules(modules);
}
