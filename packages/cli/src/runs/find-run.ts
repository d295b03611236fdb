/** A run as a person names it. */
import type { ApiClient } from "@loraline/client";
import type { RunState } from "@loraline/contracts";
import { exitCodes, Failure } from "../failure.ts";

/**
 * @param given - its id, the job's id, a unique beginning or end of the id, or `last`.
 * @throws Failure not_found, AMBIGUOUS
 */
export async function findRun(api: ApiClient, given: string): Promise<RunState> {
  const id = given.replace(/^ftjob-/, "").toUpperCase();
  if (/^[0-9A-Z]{26}$/.test(id)) return api.getRun({ run_id: id });
  const runs = newestFirst((await api.listRuns()).data);
  const found = given === "last" ? runs.slice(0, 1) : runs.filter(({ runId }) => runId.startsWith(id) || runId.endsWith(id));
  const [only] = found;
  if (only !== undefined && found.length === 1) return only;
  throw new Failure(
    exitCodes.notFound,
    found.length === 0 ? "not_found" : "AMBIGUOUS",
    found.length === 0
      ? `there is no run "${given}". \`loraline runs\` lists them.`
      : `"${given}" fits ${found.length} runs. Give more of the id.`,
    { param: "run" },
  );
}

/** Ids are made of the time, so they sort as it does. */
export const newestFirst = (runs: readonly RunState[]): RunState[] => runs.toSorted((a, b) => (a.runId < b.runId ? 1 : -1));
