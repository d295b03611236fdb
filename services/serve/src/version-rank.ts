/** Which versions come first, where not everything can be done or held at once: in the agent's work and in placement. */
import type { AdapterState, AdapterVersion } from "@loraline/contracts";

/** 0: users ask for it. 1: somebody waits for it. 2: the rest. */
export type VersionRank = 0 | 1 | 2;

export const rankOf = (
  { alias, canary }: Pick<AdapterState, "alias" | "canary">,
  { version, servedAt }: Pick<AdapterVersion, "version" | "servedAt">,
): VersionRank => (version === alias || version === canary?.version ? 0 : servedAt === null ? 1 : 2);
