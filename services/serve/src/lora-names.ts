/** LoRA names: what an adapter's version is called inside an engine. One name stands for the same bytes for ever. */
import { adapterName, type Digest, tenantName } from "@loraline/contracts";

/**
 * `<tenant>.<adapter>.v<version>.<first 12 hex digits of the digest>`. vLLM keys its prefix cache by this name, so a name that
 * held other bytes before would answer from them. Events and KV entries have it as `engineName`.
 */
export const loraNameOf = (adapter: { tenant: string; adapter: string; version: number; digest: Digest }): string =>
  `${adapter.tenant}.${adapter.adapter}.v${adapter.version}.${hexOf(adapter.digest).slice(0, 12)}`;

export const hexOf = (digest: Digest): string => digest.slice("sha256:".length);

/** Whether a model that an engine lists is an adapter of ours. Others, which were loaded by hand or by flags, are left alone. */
export function isLoraName(name: string): boolean {
  const [tenant, adapter, version, hex, ...rest] = name.split(".");
  return (
    rest.length === 0 &&
    tenantName.safeParse(tenant).success &&
    adapterName.safeParse(adapter).success &&
    /^v[1-9][0-9]*$/.test(version ?? "") &&
    /^[0-9a-f]{12}$/.test(hex ?? "")
  );
}

/** Which version a LoRA name stands for. The name must be one of ours. */
export function partsOfLoraName(name: string): { tenant: string; adapter: string; version: number } {
  const [tenant = "", adapter = "", version = ""] = name.split(".");
  return { tenant, adapter, version: Number(version.slice(1)) };
}
