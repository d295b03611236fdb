/** Which versions come first, where not everything can be done or held at once: in the agent's work and in placement. */
import type { AdapterState, AdapterVersion } from "@loraline/contracts";

/** 0: users of the alias get it. 1: somebody waits for it: its run, a move of the alias, or who asked for it by name. 2: the rest. */
export type VersionRank = 0 | 1 | 2;

export const rankOf = (
  { alias, canary, awaiting }: Pick<AdapterState, "alias" | "canary" | "awaiting">,
  { version, servedAt, wanted }: Pick<AdapterVersion, "version" | "servedAt" | "wanted">,
): VersionRank => {
  if (version === alias || version === canary?.version) return 0;
  return servedAt === null || wanted || version === awaiting?.version ? 1 : 2;
};
