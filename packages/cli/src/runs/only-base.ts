/** The base of a command that names none. */
import type { ApiClient } from "@loraline/client";
import { exitCodes, Failure } from "../failure.ts";

/** @throws Failure BASE_MISSING, with the bases that there are: nobody's training should begin on a guess. */
export async function onlyBase(api: Pick<ApiClient, "listEngines">): Promise<string> {
  const { data: engines } = await api.listEngines();
  const bases = [...new Set(engines.map(({ base }) => base))].sort();
  if (bases.length === 1 && bases[0] !== undefined) return bases[0];
  const message =
    bases.length === 0 ? "no engine is up yet, so say the base with --base." : `say which base with --base: ${bases.join(", ")}.`;
  throw new Failure(exitCodes.usage, "BASE_MISSING", message, { param: "--base" });
}
