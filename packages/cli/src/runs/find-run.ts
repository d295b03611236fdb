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
  const found = given === "last" ? (await api.listRuns({ query: { limit: 1 } })).data : await runsLike(api, id);
  const [only] = found;
  if (only !== undefined && found.length === 1) return only;
  throw new Failure(
    exitCodes.notFound,
    found.length === 0 ? "not_found" : "AMBIGUOUS",
    found.length === 0 ? `there is no run "${given}". \`loraline runs\` lists them.` : `"${given}" fits several runs. Give more of the id.`,
    { param: "run" },
  );
}

/** Of all pages, until there are two. */
async function runsLike(api: ApiClient, id: string): Promise<RunState[]> {
  const found: RunState[] = [];
  for (let after: string | undefined; ;) {
    const { data, has_more: more } = await api.listRuns({ query: { limit: 1000, ...(after === undefined ? {} : { after }) } });
    found.push(...data.filter(({ runId }) => runId.startsWith(id) || runId.endsWith(id)));
    after = data.at(-1)?.runId;
    if (found.length > 1 || !more || after === undefined) return found;
  }
}
