/** Pure: makes OpenAI's job object from a run. */
import {
  byMethod,
  type JobCheckpointObject,
  type JobObject,
  type MethodTable,
  type Notice,
  type Problem,
  type RunPhase,
  type RunSpec,
  type RunState,
  usualLearningRates,
} from "@loraline/contracts";
import { checkpointModel, fileIdOf, fineTunedModel, jobIdOf, resultFileIdOf } from "../openai-ids.ts";
import { jobParamOf } from "./run-spec-from-job.ts";

const unix = (iso: string): number => Math.floor(Date.parse(iso) / 1000);

/** The job's status for each phase. A run that is `trained` is still `running`: the job ends when the adapter is served and proven. */
const jobStatusOf: Readonly<Record<RunPhase, JobObject["status"]>> = {
  requested: "validating_files",
  tokenized: "queued",
  queued: "queued",
  running: "running",
  trained: "running",
  served: "succeeded",
  rejected: "failed",
  failed: "failed",
  cancelled: "cancelled",
};

/** Phases in which a run that is paused does not go on. */
export const mayPause: ReadonlySet<RunPhase> = new Set(["requested", "tokenized", "queued", "running"]);

const trainingFile = ({ dataset }: RunSpec): string => (dataset === undefined ? "" : fileIdOf(dataset));

/** The parts of a job object that depend on the run's method. */
const methods: MethodTable<[spec: RunSpec, hyperparameters: JobObject["hyperparameters"]], Pick<JobObject, "method" | "training_file">> = {
  supervised: ({ type }, spec, hyperparameters) => ({
    training_file: trainingFile(spec),
    method: { type, supervised: { hyperparameters } },
  }),
  dpo: ({ type, ...own }, spec, used) => ({
    training_file: trainingFile(spec),
    method: { type, dpo: { hyperparameters: { ...used, ...own } } },
  }),
  orpo: ({ type, ...own }, spec, used) => ({
    training_file: trainingFile(spec),
    method: { type, orpo: { hyperparameters: { ...used, ...own } } },
  }),
  simpo: ({ type, ...own }, spec, used) => ({
    training_file: trainingFile(spec),
    method: { type, simpo: { hyperparameters: { ...used, ...own } } },
  }),
  kto: ({ type, ...own }, spec, used) => ({
    training_file: trainingFile(spec),
    method: { type, kto: { hyperparameters: { ...used, ...own } } },
  }),
  judge: ({ type, ...own }, spec, used) => ({
    training_file: trainingFile(spec),
    method: { type, judge: { hyperparameters: { ...used, ...own } } },
  }),
  import: ({ type, source }) => ({ training_file: `import:${source}`, method: { type, import: { source } } }),
};

/** A notice about the run spec, with the field named as in the job's request. */
export const noticeOfJob = ({ param, message }: Notice): Notice => {
  const name = jobParamOf(param);
  return { param: name, message: message.startsWith(param) ? name + message.slice(param.length) : message };
};

const jobErrorOf = ({ code, message, param }: Problem): JobObject["error"] => ({
  code,
  message,
  param: typeof param === "string" ? jobParamOf(param) : null,
});

export function jobObjectOf(run: RunState): JobObject {
  const { spec, tenant, progress } = run;
  const hyperparameters = {
    n_epochs: spec.training.num_train_epochs,
    batch_size: spec.training.per_device_train_batch_size * spec.training.gradient_accumulation_steps,
    // 15 digits: 4e-4 / 2e-4 is 2, not 2.0000000000000004.
    learning_rate_multiplier: Number((spec.training.learning_rate / usualLearningRates[spec.method.type]).toPrecision(15)),
  };
  return {
    id: jobIdOf(run.runId),
    object: "fine_tuning.job",
    created_at: unix(run.requestedAt),
    finished_at: run.finishedAt === null ? null : unix(run.finishedAt),
    estimated_finish:
      run.phase === "running" && typeof progress?.etaSeconds === "number" && typeof progress.total !== "number"
        ? unix(progress.at) + Math.ceil(progress.etaSeconds)
        : null,
    model: spec.base,
    fine_tuned_model:
      run.served === null ? null : fineTunedModel({ base: spec.base, tenant, adapter: spec.adapter, version: run.served.version }),
    organization_id: tenant,
    // An import was trained elsewhere, so there are no metrics of it.
    result_files: run.trained === null || run.trained.steps === 0 ? [] : [resultFileIdOf(run.runId)],
    seed: spec.training.seed,
    status: run.paused === true && mayPause.has(run.phase) ? "paused" : jobStatusOf[run.phase],
    trained_tokens: run.trained?.trainedTokens ?? null,
    ...byMethod(methods, spec.method, spec, hyperparameters),
    validation_file: spec.validation === undefined ? null : fileIdOf(spec.validation),
    hyperparameters,
    integrations: [],
    metadata: spec.metadata ?? null,
    error: run.error === null ? null : jobErrorOf(run.error),
    loraline: { run, ...(spec.notices === undefined ? {} : { notices: spec.notices.map(noticeOfJob) }) },
  };
}

/** Newest first, as the run keeps them. */
export const checkpointObjectsOf = (run: RunState): JobCheckpointObject[] =>
  run.checkpoints.map((checkpoint) => ({
    id: `ftckpt-${run.runId}-${checkpoint.step}`,
    object: "fine_tuning.job.checkpoint",
    created_at: unix(checkpoint.at),
    fine_tuned_model_checkpoint: checkpointModel({
      base: run.spec.base,
      tenant: run.tenant,
      adapter: run.spec.adapter,
      checkpoint: { runId: run.runId, step: checkpoint.step },
    }),
    fine_tuning_job_id: jobIdOf(run.runId),
    step_number: checkpoint.step,
    metrics: { step: checkpoint.step, ...(checkpoint.trainLoss === null ? {} : { train_loss: checkpoint.trainLoss }) },
  }));
