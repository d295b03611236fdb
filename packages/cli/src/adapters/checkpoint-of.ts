/** A checkpoint of an adapter, as a person names it. */
import type { ApiClient } from "@loraline/client";
import { exitCodes, Failure } from "../failure.ts";
import { splitVersion } from "./version-named.ts";

/** Runs that are looked through: those that are older have lost their checkpoints. */
const mostRuns = 20;

/**
 * @returns the model's name.
 * @throws Failure CHECKPOINT_UNKNOWN
 */
export async function checkpointOf(api: ApiClient, name: string, step: number): Promise<string> {
  const { adapter } = splitVersion(name);
  const { data: runs } = await api.listRuns({ query: { adapter, limit: mostRuns } });
  const newest = runs.find(({ checkpoints }) => checkpoints.some((one) => one.step === step));
  if (newest === undefined) {
    const steps = runs.find(({ checkpoints }) => checkpoints.length > 0)?.checkpoints.map((one) => one.step);
    const has = steps === undefined ? "none of its runs has one" : `its newest are of the steps ${steps.toReversed().join(", ")}`;
    const message = `${adapter} has no checkpoint of step ${step}: ${has}. training.save_steps says how often one is saved, training.save_total_limit how many are kept.`;
    throw new Failure(exitCodes.notFound, "CHECKPOINT_UNKNOWN", message, { param: "checkpoint" });
  }
  const job = await api.listFineTuningJobCheckpoints({ fine_tuning_job_id: `ftjob-${newest.runId}`, query: { limit: 100 } });
  const found = job.data.find(({ step_number: number }) => number === step);
  if (found === undefined) throw new Failure(exitCodes.notFound, "CHECKPOINT_UNKNOWN", `the checkpoint of step ${step} was just removed.`);
  return found.fine_tuned_model_checkpoint;
}
