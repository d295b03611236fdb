/** Which versions come first, where not everything can be done or held at once: in the agent's work and in placement. */
import type { AdapterState, AdapterVersion } from "@loraline/contracts";

/**
 * 0: users of the alias get it. 1: somebody waits for it: its run, or a move of the alias. 2: somebody asked for it by name; whoever may
 * chat can do that for hundreds of versions, and no run of another tenant waits behind them. 3: the rest.
 */
export type VersionRank = 0 | 1 | 2 | 3;

export const rankOf = (
  { alias, canary, awaiting }: Pick<AdapterState, "alias" | "canary" | "awaiting">,
  { version, servedAt, wanted, checkpoint }: Pick<AdapterVersion, "version" | "servedAt" | "wanted" | "checkpoint">,
): VersionRank => {
  if (version === alias || version === canary?.version) return 0;
  if ((servedAt === null && !checkpoint) || version === awaiting?.version) return 1;
  return wanted ? 2 : 3;
};
