/** The table of all events. Subjects, types, AsyncAPI and JSON Schema derive from it. */
import { z } from "zod";
import { datasetMapping } from "../spec/dataset-mapping.ts";
import { defineEvent, type EventDef, type Noun } from "./define-event.ts";
import { importSource } from "../spec/import-source.ts";
import { adapterName, blobRef, digest, isoTime, problem, ulid } from "../names.ts";
import { initialAdapter, tokenTotals, twin } from "../records.ts";
import { canarySettings, keepPolicy, placement, runSpec } from "../spec/run-spec.ts";
import { evaluation, publishedCheckpoint } from "../trainer.ts";

/** A FineTune is named by its namespace (63) and its name (253). */
const actor = z.string().max(400).nullish().describe("Who asked, for the audit trail.");
const note = z.string().nullish().describe("What the gate was asked to judge and could not.");
const version = z.int().min(1).describe("Version of the adapter: 1, 2, 3…");

/** Why work waits although the user's input is right: a server does not answer, has no room, or refuses Loraline's credentials. */
const waiting = z.object({
  stage: z.enum(["ingest", "tokenize", "train", "serve"]),
  reason: z.object({ code: z.string(), message: z.string() }).nullable().describe("null: it goes on."),
});

/* dataset */

export const datasetImportRequested = defineEvent(
  "dataset.import-requested.v1",
  "Somebody wants a file from elsewhere as a dataset; ingest fetches it",
  z.object({
    source: importSource,
    mapping: datasetMapping.nullish().describe("Handed on to `dataset.received`."),
    by: actor,
  }),
);
export const datasetReceived = defineEvent(
  "dataset.received.v1",
  "An upload is complete in the object store",
  z.object({
    blob: blobRef,
    filename: z.string().min(1).max(512),
    parts: z
      .array(z.object({ blob: blobRef, filename: z.string().min(1).max(512) }))
      .max(1000)
      .nullish()
      .describe("More files of the same dataset, read after it: the shards of a split."),
    mapping: datasetMapping.nullish().describe("How its rows are read; absent: each row's format is detected."),
    by: actor,
  }),
);
export const datasetIngested = defineEvent(
  "dataset.ingested.v1",
  "The dataset is canonical records now; every row is a record or a rejection",
  z.object({
    manifest: blobRef,
    report: blobRef,
    records: z.int().nonnegative(),
    rejections: z.int().nonnegative(),
    formats: z.record(z.string(), z.int()),
    cacheHit: z.boolean(),
  }),
);
export const datasetRejected = defineEvent(
  "dataset.rejected.v1",
  "Nothing in the dataset can be trained on",
  problem.extend({ report: blobRef.nullish(), rejections: z.int().nonnegative() }),
);
export const datasetWaiting = defineEvent("dataset.waiting.v1", "The dataset waits for a server that it needs, or goes on", waiting);
/** How much of a piece of work is done. Told every few seconds of whatever takes long, for display only. */
export const workDone = {
  done: z.int().nonnegative(),
  total: z.int().nonnegative().nullable().describe("null: nobody knows."),
  etaSeconds: z.number().nonnegative().nullish().describe("Until `total`, at the speed so far."),
};
export const datasetProgress = defineEvent(
  "dataset.progress.v1",
  "How many bytes of a dataset are fetched, or read",
  z.object({ stage: z.enum(["fetch", "read"]), ...workDone }),
);
export const datasetDeleted = {
  ...defineEvent("dataset.deleted.v1", "A user deleted the upload", z.object({ by: actor })),
  // All else of the dataset is gone by then, as is the record of its deletion (KV `deletions`).
  lastsMs: 90 * 24 * 60 * 60_000,
};

/* run */

export const runRequested = defineEvent("run.requested.v1", "Somebody wants an adapter", z.object({ spec: runSpec, by: actor }));
export const runRejected = defineEvent("run.rejected.v1", "The run cannot start; nothing was spent", problem);
export const runTokenized = defineEvent(
  "run.tokenized.v1",
  "Arrow shards are ready to train on",
  z.object({
    manifest: blobRef,
    totals: tokenTotals,
    packed: z.boolean(),
    cacheHit: z.boolean(),
    system: z
      .string()
      .nullish()
      .describe("System prompt of the conversations that had none of their own. The version is served with it. Absent or null: none."),
    init: initialAdapter
      .nullish()
      .describe("What `init_from` names. Absent or null: training begins with an adapter that changes nothing yet."),
    twins: z
      .array(twin)
      .nullish()
      .describe("Quantised bases on which the adapter will be served instead of its own. Absent or null: none."),
  }),
);
export const runQueued = defineEvent(
  "run.queued.v1",
  "The attempt waits for a device",
  z.object({ attempt: z.int().min(1), reason: z.string(), message: z.string() }),
);
export const runWaiting = defineEvent("run.waiting.v1", "The run waits for a server that it needs, or goes on", waiting);
export const runStarted = defineEvent(
  "run.started.v1",
  "An attempt's courier is running",
  z.object({ attempt: z.int().min(1), job: z.string().describe("Name of the Job or process."), resumedFromStep: z.int().nullish() }),
);
export const runProgress = defineEvent(
  "run.progress.v1",
  "A logged training step, a phase of the trainer, or how far a phase is",
  z.object({
    attempt: z.int().min(0).describe("0: before the first one, while records are tokenized."),
    phase: z.string(),
    done: z.int().nonnegative().nullish().describe("Of the phase: records tokenized, held-out rows evaluated."),
    total: z.int().nonnegative().nullish(),
    step: z.int().nonnegative(),
    totalSteps: z.int().nonnegative(),
    epoch: z.number().nullish(),
    loss: z.number().nullish(),
    evalLoss: z.number().nullish(),
    gradNorm: z.number().nullish(),
    learningRate: z.number().nullish(),
    tokensPerSecond: z.number().nullish(),
    tokensSeen: z.int().nullish(),
    examplesSeen: z.int().nullish(),
    etaSeconds: z.number().nullish().describe("Until the last step, or where `total` is told until the end of the phase."),
    rewardsChosen: z.number().nullish(),
    rewardsRejected: z.number().nullish(),
    rewardsMargin: z.number().nullish(),
    rewardsAccuracy: z.number().nullish(),
    warning: z.object({ code: z.string(), message: z.string() }).nullish(),
  }),
);
export const runCheckpointed = defineEvent(
  "run.checkpointed.v1",
  "A checkpoint is complete in the object store",
  z.object({
    attempt: z.int().min(1),
    step: z.int().nonnegative(),
    checkpoint: blobRef,
    trainLoss: z.number().nullish(),
    published: publishedCheckpoint.nullish(),
  }),
);
const lostAttempt = z.object({
  attempt: z.int().min(1),
  step: z
    .int()
    .nonnegative()
    .describe("Of the newest checkpoint in the object store, from which the next attempt resumes; 0: there is none."),
  code: z.string().describe("Why it ended: PREEMPTED, EVICTED, NODE_LOST, OUT_OF_MEMORY, TRAINER_CRASHED …"),
  message: z.string(),
});
export const runAttemptEnded = defineEvent(
  "run.attempt-ended.v1",
  "An attempt ended without a result, for any reason; the next one resumes from the last checkpoint",
  lostAttempt,
);
export const runPreempted = defineEvent(
  "run.preempted.v1",
  "An attempt ended without a result, as told by releases before `run.attempt-ended`, which has taken its place; still read",
  lostAttempt,
);
export const runAdapterWritten = defineEvent(
  "run.adapter-written.v1",
  "The adapter and what proves it are in the object store, while the trainer still evaluates it. Replicas may load and prove it; nobody can ask it before `run.trained` has passed the gate",
  z.object({
    attempt: z.int().min(1),
    adapter: blobRef.describe("Adapter manifest."),
    evidence: blobRef.describe("The same probes that the evidence of `run.trained` has, and no evaluation yet."),
  }),
);
export const runTrained = defineEvent(
  "run.trained.v1",
  "Adapter and evidence are complete in the object store",
  z.object({
    attempt: z.int().min(1),
    adapter: blobRef.describe("Adapter manifest; its digest is the version's digest."),
    evidence: blobRef,
    rank: z.int(),
    targetModules: z.array(z.string()),
    parameters: z.int(),
    steps: z.int(),
    trainLoss: z.number().nullable(),
    trainedTokens: z.int(),
    tokensPerSecond: z.number().nullable(),
    evaluation: evaluation.nullable(),
    lastStepAt: isoTime.describe("When the last optimizer step ended."),
  }),
);
export const runFailed = defineEvent(
  "run.failed.v1",
  "The run ended without an adapter that serves",
  problem.extend({ attempt: z.int().nullish() }),
);
export const runCancelRequested = defineEvent("run.cancel-requested.v1", "Somebody wants the run stopped", z.object({ by: actor }));
export const runPauseRequested = defineEvent(
  "run.pause-requested.v1",
  "Somebody wants the run to stop for now: after its next checkpoint it holds no device until it is resumed",
  z.object({ by: actor }),
);
export const runResumeRequested = defineEvent("run.resume-requested.v1", "Somebody wants a paused run to go on", z.object({ by: actor }));
export const runCancelled = defineEvent("run.cancelled.v1", "The run was stopped on request", z.object({ by: actor }));
export const runCommandRefused = defineEvent(
  "run.command-refused.v1",
  "A command about the run changes nothing, and why; for whoever gave it over NATS",
  problem.extend({ command: z.string().describe("Type of the command's event.") }),
);
export const runServed = defineEvent(
  "run.served.v1",
  "The version is proven on every ready replica",
  z.object({
    adapter: adapterName,
    version,
    digest,
    replicas: z.int().describe("Replicas that hold it proven."),
    of: z.int().nullish().describe("Replicas that should; fewer hold it when some are quarantined or far too slow."),
    promoted: z.boolean().describe("Whether the alias moved to it with that."),
    retired: z.array(version).nullish().describe("Older versions that were retired to make room for it."),
    note,
    lastStepToProvenMs: z.number().describe("From the last optimizer step to the proof on the last replica, in milliseconds."),
  }),
);

/* chunk: work inside of tokenize; its id is the hex of the hash of all that decides the result, which is kept under it in KV `cache` */

export const chunkRequested = defineEvent(
  "chunk.requested.v1",
  "A part of a run's records is to be tokenized, by any replica",
  z.object({
    run: ulid.describe("For whom; nothing is done once it has ended."),
    chunk: blobRef.describe("Canonical records, JSONL."),
    settings: blobRef.describe("Base and settings of tokenizing, JSON."),
  }),
);

/* adapter */

/** What an agent measured when it asked a replica the trainer's probes (test prompts). Logprobs are natural logarithms, per token. */
export const proof = z.object({
  probes: z.int().describe("Probe prompts that were asked."),
  tokens: z.int().describe("Continuation tokens compared."),
  agreement: z.number().describe("Mean |logprob on the replica − logprob in the trainer| with the adapter."),
  agreementLimit: z.number(),
  effect: z.number().describe("Mean |logprob with the adapter − logprob of the base| on the replica."),
  effectExpected: z.number().describe("The same difference as the trainer recorded it."),
  baseAgreement: z.number().nullish().describe("Mean |logprob on the replica − logprob in the trainer| of the base: what rounding costs."),
  scale: z
    .object({ value: z.number(), error: z.number().describe("One standard error.") })
    .nullish()
    .describe("By how much of the recorded effect the replica moves: 1 where all is right. Null: the effect is too small to tell."),
  unseen: z
    .number()
    .nullish()
    .describe(
      "Share of the recorded effect, measured along it, up to which a part of the adapter could be missing without a refusal: what is missing beyond it is refused in 99 of 100 cases. 1: only that the adapter has an effect is proven. Absent in proofs of before.",
    ),
  answers: z
    .array(
      z.object({
        base: z.number().describe("Of the base, in the trainer."),
        trainer: z.number().describe("With the adapter, in the trainer."),
        replica: z.number().describe("With the adapter, on the replica."),
      }),
    )
    .nullish()
    .describe(
      "For each probe, the logprobs of the next token that the adapter finds likeliest in the trainer. Absent in proofs of before.",
    ),
  provenAt: isoTime,
});
export type Proof = z.infer<typeof proof>;

/** `engineName` is the LoRA name, which the code calls `loraName`; the key stays because stored events have it. */
const held = { version, digest, engine: z.string(), replica: z.string(), incarnation: z.string(), engineName: z.string() };

const ofCheckpoint = z.int().nullish().describe("Of a checkpoint of the run: its step. Absent: what the run published at its end.");
export const adapterAccepted = defineEvent(
  "adapter.accepted.v1",
  "A version passed the gate and is desired on its engine",
  z.object({ version, digest, base: z.string(), runId: z.string(), step: ofCheckpoint, engineName: z.string(), note }),
);
export const adapterRefused = defineEvent(
  "adapter.refused.v1",
  "A version will not be served",
  problem.extend({ version: version.nullish(), digest, runId: z.string(), step: ofCheckpoint }),
);
export const adapterLoaded = defineEvent("adapter.loaded.v1", "A replica holds these bytes, proven", z.object({ ...held, proof }));
export const adapterUnloaded = defineEvent(
  "adapter.unloaded.v1",
  "A replica let go of a version",
  z.object({ ...held, reason: z.string() }),
);
export const adapterPromoteRequested = defineEvent(
  "adapter.promote-requested.v1",
  "Somebody wants the alias on this version",
  z.object({ version, canary: canarySettings.nullish().describe("Step by step, instead of at once."), by: actor }),
);
export const adapterRollbackRequested = defineEvent(
  "adapter.rollback-requested.v1",
  "Somebody wants the alias back on an earlier version",
  z.object({
    version: version.nullish().describe("Absent: the version before the current one, or, while a canary is under way, the current one."),
    by: actor,
  }),
);
export const adapterPlaceRequested = defineEvent(
  "adapter.place-requested.v1",
  "Somebody wants the adapter on other replicas",
  z.object({ placement, by: actor }),
);
export const adapterKeepRequested = defineEvent(
  "adapter.keep-requested.v1",
  "Somebody wants another number of the adapter's versions to stay loaded",
  z.object({ keep: keepPolicy, by: actor }),
);
export const adapterVersionWanted = defineEvent(
  "adapter.version-wanted.v1",
  "Somebody asks for a version by its name; if it was retired, it is loaded again",
  z.object({ version, by: actor }),
);
export const adapterCheckpointWanted = defineEvent(
  "adapter.checkpoint-wanted.v1",
  "Somebody asks for a checkpoint of a run by its name; it becomes a version of the adapter, if it is none yet",
  z.object({ runId: ulid, step: z.int().nonnegative(), by: actor }),
);
export const adapterVersionDeleteRequested = defineEvent(
  "adapter.version-delete-requested.v1",
  "Somebody wants a version gone for good",
  z.object({ version, by: actor }),
);
export const adapterDeleteRequested = defineEvent(
  "adapter.delete-requested.v1",
  "Somebody wants the adapter gone for good, with all its versions and runs",
  z.object({ by: actor }),
);
export const adapterVersionRetired = defineEvent(
  "adapter.version-retired.v1",
  "Replicas unload the version; its bytes stay in the object store, and it is loaded again when somebody asks for it",
  z.object({ version, because: version.nullish().describe("The newer version that it made room for."), reason: z.string() }),
);
export const adapterVersionRecalled = defineEvent(
  "adapter.version-recalled.v1",
  "A retired version is loaded and proven again",
  z.object({ version, by: actor, reason: z.string() }),
);
export const adapterVersionDeleted = defineEvent(
  "adapter.version-deleted.v1",
  "The version is unloaded everywhere and never served again; its bytes are removed from the object store",
  z.object({ version, digest, by: actor, reason: z.string() }),
);
export const adapterNotMoved = defineEvent(
  "adapter.not-moved.v1",
  "A move of the alias that waited for its version to be loaded again was given up",
  z.object({ version, code: z.string(), by: actor, reason: z.string() }),
);
export const adapterCommandRefused = defineEvent(
  "adapter.command-refused.v1",
  "A command about the adapter changes nothing, and why; for whoever gave it over NATS",
  problem.extend({ command: z.string().describe("Type of the command's event.") }),
);
const aliasMove = z.object({ from: version.nullable(), to: version, by: actor, reason: z.string() });
export const adapterPromoted = defineEvent("adapter.promoted.v1", "The alias moved forward", aliasMove);
export const adapterRolledBack = defineEvent("adapter.rolledback.v1", "The alias moved back", aliasMove);

const share = z.number().describe("Percent of the alias's users.");
const canaryMove = { version, from: version.describe("The promoted version."), share, by: actor, reason: z.string() };
export const adapterCanaryStarted = defineEvent(
  "adapter.canary-started.v1",
  "A version gets its first share of the alias's users",
  z.object({ ...canaryMove, settings: canarySettings.nullish() }),
);
export const adapterCanaryStepped = defineEvent(
  "adapter.canary-stepped.v1",
  "The canary did well and gets a larger share",
  z.object(canaryMove),
);
export const adapterCanaryEnded = defineEvent(
  "adapter.canary-ended.v1",
  "The canary is over: the alias moves to it, or everybody is back on the promoted version",
  z.object({
    version,
    from: version.describe("The version that was promoted meanwhile."),
    outcome: z.enum(["promoted", "rolledback", "superseded"]),
    code: z.string().nullish(),
    by: actor,
    reason: z.string(),
  }),
);

export const events = {
  datasetImportRequested,
  datasetReceived,
  datasetIngested,
  datasetRejected,
  datasetWaiting,
  datasetProgress,
  datasetDeleted,
  runRequested,
  runRejected,
  runTokenized,
  runQueued,
  runWaiting,
  runStarted,
  runProgress,
  runCheckpointed,
  runAttemptEnded,
  runPreempted,
  runAdapterWritten,
  runTrained,
  runFailed,
  runCancelRequested,
  runPauseRequested,
  runResumeRequested,
  runCancelled,
  runCommandRefused,
  runServed,
  chunkRequested,
  adapterAccepted,
  adapterRefused,
  adapterLoaded,
  adapterUnloaded,
  adapterPromoteRequested,
  adapterRollbackRequested,
  adapterPlaceRequested,
  adapterKeepRequested,
  adapterVersionWanted,
  adapterCheckpointWanted,
  adapterVersionDeleteRequested,
  adapterDeleteRequested,
  adapterVersionRetired,
  adapterVersionRecalled,
  adapterVersionDeleted,
  adapterNotMoved,
  adapterCommandRefused,
  adapterPromoted,
  adapterRolledBack,
  adapterCanaryStarted,
  adapterCanaryStepped,
  adapterCanaryEnded,
} as const;

export type AnyEvent = (typeof events)[keyof typeof events];
type EventsAbout<N extends Noun> = Extract<AnyEvent, { type: `${N}.${string}` }>;
const eventsAbout = <N extends Noun>(noun: N) => Object.values(events).filter((event): event is EventsAbout<N> => event.noun === noun);

/** Every event of the stream DATASETS. Progress is not among them, nor among those of RUNS, nor are refused commands: they are short-lived. */
export const datasetEvents = eventsAbout("dataset").filter((event) => event !== datasetProgress);
/** Every event of the stream RUNS. */
export const runEvents = eventsAbout("run").filter((event) => event !== runProgress && event !== runCommandRefused);

const byType = new Map<string, EventDef>(Object.values(events).map((event) => [event.type, event]));

/** The declaration of an event type such as `run.requested.v1`; undefined when there is none. */
export const eventOfType = (type: string): EventDef | undefined => byType.get(type);
