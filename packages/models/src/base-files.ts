/** Reads a base's modules from its folder. */
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import type { BaseModules } from "@loraline/contracts";
import { hasExperts, type PictureFamily, picturesOf, wrapperOf } from "./architectures.ts";
import { expandModules, type ModuleShapes, modulesOfBase } from "./base-modules.ts";
import { shortNames } from "./module-patterns.ts";
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

/** The parts of a base that an engine starts. */
export interface ServedParts {
  /** The base has a vision tower, which is left out: no request has pictures. */
  languageModelOnly: boolean;
  /** Most pictures in a request; 0: it takes none. */
  pictures: number;
  /** How it takes them; null: not at all. */
  pictureFamily: PictureFamily | null;
  /**
   * The modules that adapters may have, by the last parts of their names; null: all that the engine knows. Those of a mixture of experts are
   * without the experts: no adapter that is trained here has them, their slots take many times the memory, and vLLM's CPU build cannot start so.
   */
  loraModules: readonly string[] | null;
}

/** An engine keeps memory for so many in each request. */
const mostPictures = 4;
/** Without one of them neither transformers nor vLLM knows how a picture is prepared. */
const processorFiles = ["preprocessor_config.json", "processor_config.json"];

/** @throws Error: its config.json cannot be read. */
export async function readServedParts(dir: string): Promise<ServedParts> {
  const config: unknown = JSON.parse(await readFile(join(dir, "config.json"), "utf8"));
  const modules = hasExperts(config) ? await readBaseModules(dir) : undefined;
  const hasProcessor = (await readdir(dir)).some((name) => processorFiles.includes(name));
  const pictureFamily = (hasProcessor && picturesOf(config)) || null;
  return {
    languageModelOnly: wrapperOf(config) !== undefined && pictureFamily === null,
    pictures: pictureFamily === null ? 0 : mostPictures,
    pictureFamily,
    loraModules: modules === undefined ? null : shortNames(modules.keys()),
  };
}
