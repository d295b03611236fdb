/** Tells serve which versions and checkpoints are asked for by name, so that they are loaded, loaded again, or stay loaded. */
import type { Bus } from "@loraline/bus";
import { adapterCheckpointWanted, adapterManifest, adapterVersionWanted } from "@loraline/contracts";
import { enginesServing } from "@loraline/models";
import { getJson } from "@loraline/objects";
import { type Log, PermanentError, RetryLaterError } from "@loraline/runtime";
import type { GatewayContext } from "../context.ts";
import { type CheckpointName, checkpointModel } from "../openai-ids.ts";
import { enginesFor, type NamedVersion } from "./decide-route.ts";
import { modelNotFound } from "./models.ts";

/** Each is asked for at most once in so long, by all gateways together: NATS stores one message for each such period. */
const askEveryMs = 5000;

/** Forgotten from this size on; then a version may be asked for once more than needed, which the stream's own check catches. */
const mostRemembered = 10_000;

/** @returns to be called with each request that names a version; costs nothing unless it is time to ask. */
export function createVersionAsker({ bus, log, now = Date.now }: { bus: Pick<Bus, "publish">; log: Log; now?: () => number }) {
  const askedIn = new Map<string, number>();
  return (tenant: string, { adapter, version, wanted }: NamedVersion): void => {
    const time = now();
    if (wanted && time < (Date.parse(wanted.at) + Date.parse(wanted.until)) / 2) return;
    const period = Math.floor(time / askEveryMs);
    const name = `${tenant}/${adapter}@${version}`;
    if (askedIn.get(name) === period) return;
    if (askedIn.size >= mostRemembered) askedIn.clear();
    askedIn.set(name, period);
    bus.publish(adapterVersionWanted, { tenant, id: adapter }, { version }, { key: `${version}-${period}` }).catch((error: unknown) => {
      askedIn.delete(name);
      log.warn({ err: error, model: name }, "a version that is asked for could not be asked of serve");
    });
  };
}

/**
 * @returns to be called for a checkpoint that is no version; what it returns is the answer. It throws the answer QUOTA_ADAPTERS where serve
 * would make no version of it.
 */
export function createCheckpointAsker({
  state,
  objects,
  bus,
  table,
  quotas,
}: Pick<GatewayContext, "state" | "objects" | "bus" | "table" | "quotas">) {
  return async (named: CheckpointName, by: string): Promise<PermanentError | RetryLaterError> => {
    const { tenant, adapter, checkpoint } = named;
    const { runId, step } = checkpoint;
    const model = checkpointModel(named);
    const run = await state.run(tenant, runId);
    if (run === undefined || run.spec.adapter !== adapter || run.spec.base !== named.base) return modelNotFound(model, null);
    const found = run.checkpoints.find((known) => known.step === step);
    const more = `GET /v1/fine_tuning/jobs/ftjob-${runId}/checkpoints lists the run's`;
    if (found === undefined) {
      const why = run.finishedAt === null ? "has no checkpoint of step" : "has kept no checkpoint of step";
      return modelNotFound(model, `Run ${runId} ${why} ${step}. ${more}; training.save_steps says how often one is saved.`);
    }
    if (!found.published) {
      const why = "it holds no adapter that could be served: it is of an older trainer, or had learned nothing yet";
      return modelNotFound(model, `The checkpoint of step ${step} cannot be asked: ${why}. ${more}.`);
    }
    const isThere = await getJson(objects, tenant, found.published.adapter, adapterManifest).then(
      () => true,
      (error: unknown) => {
        if (error instanceof PermanentError && error.code === "OBJECT_MISSING") return false;
        throw error;
      },
    );
    if (!isThere) {
      const kept = run.spec.training.save_total_limit;
      const rule = `Of each run the newest ${kept} ${kept === 1 ? "is" : "are"} kept (training.save_total_limit), until seven days after its end`;
      const remedy = `Ask for a newer one, or train again with a higher training.save_total_limit. A checkpoint that was asked in time stays as a version of ${adapter}`;
      return modelNotFound(model, `The checkpoint of step ${step} was removed. ${rule}. ${remedy}.`);
    }
    if (enginesServing(enginesFor(table.view(), tenant), named.base).length === 0)
      return modelNotFound(model, `The checkpoint of step ${step} cannot be asked: no engine serves its base "${named.base}" now.`);
    await quotas.admitAdapter(tenant, adapter);
    const period = Math.floor(Date.now() / askEveryMs);
    await bus.publish(adapterCheckpointWanted, { tenant, id: adapter }, { runId, step, by }, { key: `${runId}-${step}-${period}` });
    return new RetryLaterError(
      "version_loading",
      2000,
      `The checkpoint of step ${step} is being loaded as a version of ${tenant}/${adapter}; ask again in a moment.`,
    );
  };
}
