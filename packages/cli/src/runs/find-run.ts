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
  // Newest first. By their ids they would not be: those of requests with an idempotency key begin with the time of a window of it.
  const runs = (await api.listRuns()).data;
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
