/** Names of adapters inside an engine: one name, one set of bytes, for ever. */
import { adapterName, type Digest, tenantName } from "@loraline/contracts";

/**
 * `<tenant>.<adapter>.v<version>.<first 12 hex digits of the digest>`. vLLM keys its prefix cache by this name, so a name that
 * held other bytes before would answer from them.
 */
export const engineNameOf = (adapter: { tenant: string; adapter: string; version: number; digest: Digest }): string =>
  `${adapter.tenant}.${adapter.adapter}.v${adapter.version}.${hexOf(adapter.digest).slice(0, 12)}`;

export const hexOf = (digest: Digest): string => digest.slice("sha256:".length);

/** Whether a model that an engine lists is an adapter of ours; others, loaded by hand or by flags, are left alone. */
export function isEngineName(name: string): boolean {
  const [tenant, adapter, version, hex, ...rest] = name.split(".");
  return (
    rest.length === 0 &&
    tenantName.safeParse(tenant).success &&
    adapterName.safeParse(adapter).success &&
    /^v[1-9][0-9]*$/.test(version ?? "") &&
    /^[0-9a-f]{12}$/.test(hex ?? "")
  );
}
