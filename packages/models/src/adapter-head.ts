/** Reads config, names, types and shapes of a stored adapter, without its values. */
import { adapterFiles, type AdapterParts } from "./judge-adapter.ts";
import type { BlobRef } from "@loraline/contracts";
import { longestSafetensorsHeader, parseSafetensorsHeader, safetensorsHeaderLength, safetensorsPrefix } from "./safetensors-header.ts";
import { PermanentError } from "@loraline/runtime";
import { getBytes, type Objects } from "@loraline/objects";

/** Largest config, in bytes. Real ones have some hundred. */
const longestConfig = 1024 * 1024;

/**
 * Config and tensors of an adapter: its names, types and shapes.
 * @throws PermanentError ADAPTER_CONFIG_INVALID, ADAPTER_UNREADABLE; OBJECT_MISSING, OBJECT_CORRUPT
 */
export async function readAdapterHead(
  objects: Pick<Objects, "get">,
  tenant: string,
  { config, weights }: { config: BlobRef; weights: BlobRef },
): Promise<AdapterParts> {
  const fail = (code: string, param: string, message: string, cause?: unknown): PermanentError =>
    new PermanentError(code, message, { param, cause });
  if (config.size > longestConfig) {
    throw fail(
      "ADAPTER_CONFIG_INVALID",
      adapterFiles.config,
      `${adapterFiles.config} has ${config.size} bytes, which no config of a LoRA has.`,
    );
  }
  const text = await getBytes(objects, tenant, config);
  let parsed: unknown;
  try {
    parsed = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(text));
  } catch (error) {
    throw fail("ADAPTER_CONFIG_INVALID", adapterFiles.config, `${adapterFiles.config} is not JSON: ${(error as Error).message}`, error);
  }
  try {
    return { config: parsed, tensors: parseSafetensorsHeader(await headerOf(objects, tenant, weights), weights.size) };
  } catch (error) {
    if (error instanceof PermanentError || (error as NodeJS.ErrnoException).code !== undefined) throw error;
    const message = `${adapterFiles.weights} is not a valid safetensors file: ${(error as Error).message}`;
    throw fail("ADAPTER_UNREADABLE", adapterFiles.weights, message, error);
  }
}

async function headerOf(objects: Pick<Objects, "get">, tenant: string, weights: BlobRef): Promise<Uint8Array> {
  let read = Buffer.alloc(0);
  let wanted = safetensorsPrefix;
  for await (const part of await objects.get(tenant, weights)) {
    read = Buffer.concat([read, part]);
    if (read.length >= safetensorsPrefix) wanted = safetensorsPrefix + safetensorsHeaderLength(read, weights.size);
    if (read.length >= wanted || read.length > safetensorsPrefix + longestSafetensorsHeader) break;
  }
  return read.subarray(safetensorsPrefix, safetensorsPrefix + safetensorsHeaderLength(read, weights.size));
}
