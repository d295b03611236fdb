/** The values of the KV buckets. Runs and datasets can be rebuilt from the streams; each other value is written by one service. */
import { z } from "zod";
import { storedMapping } from "./spec/dataset-mapping.ts";
import { proof, workDone } from "./events/events.ts";
import { importSource } from "./spec/import-source.ts";
import { adapterName, blobRef, digest, isoTime, problem, tenantName, traceparent, ulid } from "./names.ts";
import { quotaShape } from "./quotas.ts";
import { initialAdapter, tokenTotals, twin } from "./records.ts";
import { canarySettings, defaultKeep, keepPolicy, placement, runSpec } from "./spec/run-spec.ts";
import { evaluation, publishedCheckpoint } from "./trainer.ts";

const wholeSeq = z
  .int()
  .nullish()
  .describe("Up to here the entry was folded from the entity's whole history: an older event that comes late is in it. Absent: never.");

export const datasetState = z.object({
  tenant: tenantName,
  datasetId: ulid,
  status: z.enum(["importing", "received", "ingested", "rejected", "deleted"]),
  filename: z.string(),
  mapping: storedMapping.nullable().default(null).describe("How its rows are read; null: each row's format is detected."),
  blob: blobRef.nullable().describe("null until an import is fetched."),
  parts: z
    .array(z.object({ blob: blobRef, filename: z.string() }))
    .default([])
    .describe("More files of the same dataset, read after it."),
  source: importSource.nullable().default(null).describe("Where it was imported from; null: it was uploaded."),
  receivedAt: isoTime,
  settledAt: isoTime.nullable(),
  manifest: blobRef.nullable(),
  report: blobRef.nullable(),
  records: z.int().nullable(),
  rejections: z.int().nullable(),
  error: problem.nullable(),
  waiting: z
    .object({ code: z.string(), message: z.string() })
    .nullable()
    .default(null)
    .describe("What it waits for: a server that is away, or refuses the operator's account."),
  progress: z
    .object({ stage: z.enum(["fetch", "read"]), ...workDone, at: isoTime })
    .nullish()
    .describe("Bytes that are fetched or read, while it is. Absent: it was quick, or is done."),
  trace: traceparent.nullable().describe("Trace context of the upload."),
  seq: z.int().describe("Last stream sequence folded in; makes folding twice harmless."),
  wholeSeq,
});
export type DatasetState = z.infer<typeof datasetState>;

export const runPhases = ["requested", "tokenized", "queued", "running", "trained", "served", "rejected", "failed", "cancelled"] as const;
export type RunPhase = (typeof runPhases)[number];
/** `queue.reason` of a run that somebody paused. */
export const pausedReason = "PAUSED";

export const terminalPhases: ReadonlySet<RunPhase> = new Set(["served", "rejected", "failed", "cancelled"]);

const runCheckpoint = z.object({
  attempt: z.int(),
  step: z.int(),
  checkpoint: blobRef,
  trainLoss: z.number().nullable(),
  at: isoTime,
  published: publishedCheckpoint.nullish(),
});

export const runState = z.object({
  tenant: tenantName,
  runId: ulid,
  spec: runSpec,
  phase: z.enum(runPhases),
  requestedAt: isoTime,
  startedAt: isoTime.nullable(),
  updatedAt: isoTime,
  finishedAt: isoTime.nullable(),
  trace: traceparent.nullable().describe("Trace context of the newest event of the run's main path; later work continues it."),
  cancelRequested: z.boolean(),
  paused: z.boolean().optional().describe("Somebody paused it: no attempt starts until it is resumed."),
  attempt: z.int().describe("Newest attempt that started; 0 before the first."),
  lostAttempts: z.int().describe("Attempts that ended without a result."),
  lastLostAttempt: z.int().optional().describe("The newest of them."),
  queue: z.object({ reason: z.string(), message: z.string() }).nullable().describe("What it waits for, in any phase."),
  tokens: z
    .object({
      manifest: blobRef,
      totals: tokenTotals,
      packed: z.boolean(),
      cacheHit: z.boolean(),
      init: initialAdapter.nullish(),
      twins: z.array(twin).nullish(),
      at: isoTime,
    })
    .nullable(),
  progress: z
    .object({
      attempt: z.int(),
      phase: z.string(),
      done: z.int().nullish().describe("Of the phase: records tokenized, held-out rows evaluated."),
      total: z.int().nullish(),
      step: z.int(),
      totalSteps: z.int(),
      epoch: z.number().nullable(),
      loss: z.number().nullable(),
      learningRate: z.number().nullable(),
      tokensPerSecond: z.number().nullable(),
      etaSeconds: z.number().nullable(),
      rewardsMargin: z.number().nullish(),
      rewardsAccuracy: z.number().nullish(),
      at: isoTime,
    })
    .nullable(),
  checkpoints: z.array(runCheckpoint).describe("Newest first, at most 50."),
  trained: z
    .object({
      adapter: blobRef,
      evidence: blobRef,
      rank: z.int(),
      parameters: z.int(),
      steps: z.int(),
      trainLoss: z.number().nullable(),
      trainedTokens: z.int(),
      tokensPerSecond: z.number().nullable(),
      evaluation: evaluation.nullable(),
      lastStepAt: isoTime,
      at: isoTime,
    })
    .nullable(),
  served: z
    .object({
      version: z.int(),
      digest,
      replicas: z.int(),
      promoted: z.boolean(),
      retired: z.array(z.int()).nullish(),
      note: z.string().nullish(),
      lastStepToProvenMs: z.number(),
      at: isoTime,
    })
    .nullable(),
  error: problem.nullable(),
  seq: z.int().describe("Last sequence of RUNS folded in."),
  wholeSeq,
});
export type RunState = z.infer<typeof runState>;

const adapterVersion = z.object({
  version: z.int().min(1),
  digest,
  manifest: blobRef,
  evidence: blobRef,
  runId: ulid,
  checkpoint: z
    .object({ runId: ulid, step: z.int() })
    .nullish()
    .describe("Of a version that is a checkpoint of its run, made when somebody asked for it. Absent: what the run published at its end."),
  rank: z.int(),
  engineName: z.string().describe("LoRA name of this version: the immutable name under which engines load it; holds the digest."),
  replicas: z
    .array(z.string())
    .nullish()
    .describe("Replicas that should hold it, as placement decided. Absent: every one. Empty: none; `unplaced` says why."),
  unplaced: problem.nullish().describe("Why it is on fewer replicas than were asked for, or on none."),
  status: z
    .enum(["desired", "refused", "retired", "deleted"])
    .describe(
      "desired: replicas must hold it. refused: it will never be served. retired: unloaded to make room, and loaded again when somebody asks for it. deleted: gone for good.",
    ),
  reason: problem.nullable(),
  note: z.string().nullish().describe("What the gate was asked to judge and could not."),
  system: z.string().nullish().describe("System prompt that it was trained with. The gateway puts it before conversations that have none."),
  promote: z.enum(["auto", "manual", "canary"]),
  canary: canarySettings.nullish().describe("Settings of its canary, when its run asked for one."),
  evaluation: evaluation.nullable(),
  lastStepAt: isoTime,
  createdAt: isoTime,
  servedAt: isoTime.nullable().describe("When every ready replica had it proven for the first time."),
  servedOn: z.int().nullish().describe("Replicas that had it proven then."),
  servedOf: z.int().nullish().describe("Replicas that should have had it proven then."),
  wanted: z
    .object({ at: isoTime, until: isoTime })
    .nullish()
    .describe("When somebody asked for it by name, and until when it stays loaded for that, whatever `keep` says."),
  erased: z
    .boolean()
    .nullish()
    .describe("Of a deleted version: its bytes are gone from the object store, or another version has them too."),
  trace: traceparent.nullable(),
});
export type AdapterVersion = z.infer<typeof adapterVersion>;

/** A gateway's totals for one LoRA name or base when a step began, as in `trafficState`. */
const counted = z.object({ requests: z.int(), errors: z.int() });

/** A running canary. It is part of the alias's entry, so that each move is a single compare-and-set. */
const canaryState = z.object({
  version: z.int(),
  from: z.int().describe("The promoted version, which it is compared with."),
  step: z.int().describe("Index into the settings' steps."),
  share: z.number().describe("Percent of users; the settings' step."),
  since: isoTime.describe("When this step began, or went on after a pause."),
  startedAt: isoTime,
  by: z.string().nullable(),
  settings: canarySettings,
  baseline: z
    .record(z.string(), z.object({ version: counted.nullish(), from: counted.nullish() }))
    .describe("Gateway to what it had counted of either version when the step began; what it counts afterwards is judged."),
  unprovenSince: isoTime
    .nullish()
    .describe("Since when no ready replica has the version proven: the canary is paused, and everybody gets the promoted version."),
});
export type CanaryState = z.infer<typeof canaryState>;

/** Kinds of history lines about the alias and its canary. */
export const moveKinds = ["promoted", "rolledback", "canary-started", "canary-stepped", "canary-ended"] as const;
/** Kinds of history lines about loaded versions, and about moves that were given up. */
const keepKinds = ["retired", "recalled", "deleted", "not-moved"] as const;

const commandSeq = z
  .int()
  .nullish()
  .describe("Sequence in ADAPTERS of the command that set it: an older command that comes later is not followed.");

export const adapterState = z.object({
  tenant: tenantName,
  adapter: adapterName,
  engine: z.string(),
  base: z.string(),
  placement: placement.nullish().describe("Absent: `all`."),
  placementSeq: commandSeq,
  keep: keepPolicy.nullish().describe(`How many of the newest served versions stay loaded. Absent: ${defaultKeep}.`),
  keepSeq: commandSeq,
  versions: z
    .array(adapterVersion)
    .describe("Oldest first. Of those that were retired the newest 300, of those that were refused or deleted the newest hundred."),
  alias: z.int().nullable().describe("The promoted version."),
  canary: canaryState.nullish().describe("Absent or null: none is under way."),
  awaiting: z
    .object({
      kind: z.enum(["promote", "rollback"]),
      version: z.int(),
      canary: canarySettings.nullish(),
      by: z.string().nullable(),
      command: z.int().describe("Sequence of the command in ADAPTERS."),
      since: isoTime,
    })
    .nullish()
    .describe("A move of the alias that was asked for, and waits until its version, which was retired, is proven again."),
  history: z
    .array(
      z.object({
        from: z.int().nullable(),
        to: z.int().describe("The version that the line is about: that the alias moved to, that the canary is of, that was retired…"),
        kind: z.enum([...moveKinds, ...keepKinds]),
        because: z.int().nullish().describe("Of a retired version: the newer one that it made room for."),
        n: z.int().nullish().describe("Counts the moves from 1, also those that are not kept any more."),
        by: z.string().nullable(),
        reason: z.string(),
        share: z.number().nullish().describe("Percent of users that the canary has from then on."),
        outcome: z.enum(["promoted", "rolledback", "superseded"]).nullish().describe("How a canary ended."),
        code: z.string().nullish().describe("Why a canary was rolled back, or a move was given up, as a code."),
        command: z
          .int()
          .nullish()
          .describe(
            "Sequence in ADAPTERS of the command that asked for it, so that a command that is delivered again moves nothing twice.",
          ),
        at: isoTime,
      }),
    )
    .describe(
      "Moves of the alias and of canaries, and what was retired, loaded again and deleted; oldest first, the newest few hundred. The stream ADAPTERS has all.",
    ),
});
export type AdapterState = z.infer<typeof adapterState>;

const routedVersion = adapterVersion.pick({
  version: true,
  digest: true,
  checkpoint: true,
  engineName: true,
  rank: true,
  replicas: true,
  unplaced: true,
  status: true,
  reason: true,
  promote: true,
  createdAt: true,
  servedAt: true,
  wanted: true,
  system: true,
  trace: true,
});
export type RoutedVersion = z.infer<typeof routedVersion>;

/**
 * KV `assignments`: the versions of one adapter that one replica of an engine, or every one, should hold. It follows from KV `adapters`; so an
 * agent reads what its own replica should hold, and nothing of what others should.
 */
export const assignment = z.object({
  versions: z.array(
    adapterVersion.pick({ version: true, digest: true, engineName: true, manifest: true, evidence: true, trace: true }).extend({
      priority: z.union([z.literal(0), z.literal(1), z.literal(2), z.literal(3)]).describe("What is loaded first: 0."),
    }),
  ),
});
export type Assignment = z.infer<typeof assignment>;

/**
 * The part of an entry of KV `adapters` that a gateway keeps in memory: there may be a hundred thousand of them. Objects that are written
 * with all their fields at once take half the room of those that a parser fills.
 */
export const routedAdapter: z.ZodType<RoutedAdapter> = adapterState
  .pick({ tenant: true, adapter: true, engine: true, base: true, alias: true })
  .extend({
    versions: z.array(
      routedVersion.transform(
        ({
          version,
          digest,
          checkpoint,
          engineName,
          rank,
          replicas,
          unplaced,
          status,
          reason,
          promote,
          createdAt,
          servedAt,
          wanted,
          system,
          trace,
        }): Record<keyof RoutedVersion, unknown> & RoutedVersion => ({
          version,
          digest,
          checkpoint,
          engineName,
          rank,
          replicas,
          unplaced,
          status,
          reason,
          promote,
          createdAt,
          servedAt,
          wanted,
          system,
          trace,
        }),
      ),
    ),
    canary: canaryState.pick({ version: true, from: true, share: true }).nullish(),
  });
export type RoutedAdapter = Pick<AdapterState, "tenant" | "adapter" | "engine" | "base" | "alias"> & {
  versions: RoutedVersion[];
  canary?: Pick<CanaryState, "version" | "from" | "share"> | null | undefined;
};

const replicaAdapter = z.object({
  tenant: tenantName,
  adapter: adapterName,
  version: z.int(),
  digest,
  engineName: z.string().describe("The version's LoRA name."),
  state: z
    .enum(["loading", "proven", "draining", "refused", "retrying", "quarantined"])
    .describe(
      "draining: not wanted here any more, unloaded when no request is in flight. refused: this replica cannot be proven to apply these bytes. retrying: a fault that may pass. quarantined: a fault that did not pass; tried again now and then, and nobody waits for it.",
    ),
  blame: z
    .enum(["adapter", "replica"])
    .nullish()
    .describe("adapter: found in the files alone, so it is so on every replica. replica: this replica's trouble. Absent: not known."),
  proof: proof.nullable(),
  error: problem.nullable(),
  at: isoTime,
});
export type ReplicaAdapter = z.infer<typeof replicaAdapter>;

/** KV `replicas`: the heartbeat of a replica's agent. It stays small, because the replica's adapters are in KV `holdings`. */
export const replicaReport = z.object({
  engine: z.string(),
  base: z.string(),
  replica: z.string().describe("Pod UID, or the local process's slot."),
  pod: z.string().nullish().describe("Name of the pod, for people."),
  incarnation: z
    .string()
    .describe("Changes whenever the engine process restarts; nothing is proven before it was proven in this incarnation."),
  agent: z.string().nullish().describe("Changes whenever the agent restarts; what an earlier agent reported does not count."),
  url: z.string().describe("Base URL of the replica, reachable from the gateway."),
  ready: z.boolean(),
  problem: problem.nullish().describe("Why the replica is not ready although it answers, such as TEMPLATE_MISMATCH."),
  counts: z
    .object({ wanted: z.int(), proven: z.int(), retrying: z.int(), quarantined: z.int(), refused: z.int(), draining: z.int() })
    .nullish()
    .describe("Adapter versions by state."),
  at: isoTime,
});
export type ReplicaReport = z.infer<typeof replicaReport>;

/**
 * KV `holdings`: the state of one adapter's versions on one replica. It is valid while its incarnation and agent are those of the replica's
 * heartbeat. The replica has not begun to load a version that is not listed.
 */
export const replicaHolding = z.object({
  incarnation: z.string(),
  agent: z.string().nullish(),
  adapters: z.array(replicaAdapter),
});
export type ReplicaHolding = z.infer<typeof replicaHolding>;

/** The part of an entry of KV `holdings` that a gateway keeps in memory. */
export const routedHolding = replicaHolding.pick({ incarnation: true, agent: true }).extend({
  adapters: z.array(
    replicaAdapter
      .pick({ engineName: true, state: true, error: true })
      .transform(({ engineName, state, error }) => ({ engineName, state, error })),
  ),
});

/** A replica's heartbeat together with its holdings. */
export const replicaState = replicaReport.extend({ adapters: z.array(replicaAdapter) });
export type ReplicaState = z.infer<typeof replicaState>;

/**
 * What one gateway tells of its requests, to services that requests do not pass through: agents drain an adapter before they unload it, the
 * serve controller judges a canary, and the gateways advise about the working set. Each gets an entry of its own, with no more than it needs
 * (`trafficKeys`): agents the requests in flight on replicas to which no more of their kind are sent, the controller the names that are
 * compared in a canary, gateways the names that were asked for, the operator the engines that requests need.
 */
export const trafficState = z.object({
  gateway: z.string(),
  at: isoTime,
  windowMs: z.int().describe("What `window` covers, ending at `at`."),
  engines: z.array(
    z.object({
      engineName: z.string().describe("A version's LoRA name, or the base's name."),
      engine: z.string(),
      inFlight: z.record(z.string(), z.int()).describe("Replica to requests that it is answering for this gateway."),
      total: z
        .object({
          requests: z.int(),
          errors: z.int().describe("Answers of 5xx, and answers that broke off; not what the client did wrong."),
          firstByteMs: z.number().describe("Sum over the requests, milliseconds."),
          promptTokens: z.int(),
          completionTokens: z.int(),
          since: isoTime.nullish().describe("When the counting of this name began."),
        })
        .describe("Since the gateway started; a smaller number than before means that it started anew."),
      window: z.object({ requests: z.int(), firstByteP50Ms: z.number().nullable(), firstByteP95Ms: z.number().nullable() }),
    }),
  ),
  asked: z.record(z.string(), z.array(z.string())).nullish().describe("Engine to names that were asked for since the last such entry."),
  demand: z
    .record(z.string(), z.int())
    .nullish()
    .describe(
      "Of engines that may be scaled to zero those that were asked since the last such entry, each with the requests that wait for it.",
    ),
});
export type TrafficState = z.infer<typeof trafficState>;

/**
 * The most that a tenant, or one of its adapters, may use. A rate that is absent does not apply; a quota that is absent is the
 * installation's. Only a tenant's own entry has quotas.
 */
export const limitState = z.object({
  requestsPerMinute: z.int().min(1).nullish(),
  tokensPerMinute: z.int().min(1).nullish().describe("Prompt and answer together."),
  concurrency: z.int().min(1).nullish().describe("Requests in flight at once."),
  ...quotaShape,
  fixed: z.boolean().nullish().describe("Set by the operator; the tenant's own admins cannot change it."),
  by: z.string().nullable(),
  at: isoTime,
});
export type LimitState = z.infer<typeof limitState>;

/** KV `training`: what the runs of a tenant hold, as the train controller sees it. */
export const trainingUse = z.object({
  running: z.int().min(0).describe("Runs that have a place: they train, or their attempts wait in the cluster."),
  gpus: z.int().min(0).describe("Of these runs."),
  waiting: z.int().min(0).describe("Runs that are not over and do not train."),
  at: isoTime,
});

/**
 * The part of one limit that gateways have taken. Each gateway takes a slice by compare-and-set and spends it without asking again. So all
 * gateways together never exceed the limit, and a request needs no round trip.
 */
export const budgetState = z.object({
  window: z.int().describe("Minutes since the epoch. The newest that any gateway has seen counts for all."),
  requests: z.int().nonnegative().describe("Taken in this window."),
  tokens: z.int().nonnegative().describe("Taken in this window."),
  slots: z
    .record(z.string(), z.object({ count: z.int().min(1), until: isoTime }))
    .describe("Gateway to the requests that it may have in flight, until it renews them or they are free again."),
});
export type BudgetState = z.infer<typeof budgetState>;

export const usageRow = z.object({
  model: z.string().describe("`<tenant>/<adapter>@<version>`, or the base."),
  base: z.string(),
  adapter: z.string().nullable(),
  version: z.int().nullable(),
  requests: z.int(),
  failed: z.int().describe("Of these: answered with 5xx, or broken off by the engine."),
  promptTokens: z.int().describe("As the engine counted them."),
  completionTokens: z.int(),
  estimated: z
    .int()
    .describe(
      "Of these requests: their client or the engine left before the engine's count, so that theirs is an estimate from what was sent.",
    ),
});
export type UsageRow = z.infer<typeof usageRow>;

/** One gateway's counts for one tenant on one day (UTC), as absolute numbers, so that writing them twice is harmless. */
export const usageState = z.object({
  tenant: tenantName,
  day: z.iso.date(),
  at: isoTime,
  rows: z.array(usageRow),
  merged: z.array(z.string()).nullish().describe("Of the day's total: the gateways whose counts are in it."),
});
export type UsageState = z.infer<typeof usageState>;

/** KV `cache`: the result of work, found by the hash of all its inputs. If it is lost, the work is only done again. */
export const cacheEntry = z.object({ manifest: blobRef, at: isoTime });

/** KV `deletions`: what somebody wants gone for good. The collector carries it out, and may begin again at any point. */
export const deletionState = z.object({
  tenant: tenantName,
  what: z.enum(["dataset", "adapter", "version", "tenant"]),
  id: z.string().describe("The dataset's id; the adapter's name; `<adapter>/<version>`; the tenant's name."),
  by: z.string().nullable(),
  at: isoTime,
  waiting: z.string().nullable().describe("What it waits for."),
  doneAt: isoTime.nullable().describe("Since when nothing of it is left."),
});
export type DeletionState = z.infer<typeof deletionState>;

/** KV `leases`: who does some work of which one at a time is enough. */
export const leaseState = z.object({ holder: z.string() });

/** KV `waited`: of a message that was delivered more than once, how often it was begun, and how many of these ended in planned waiting. */
export const waitedState = z.object({
  deliveries: z.int().min(0).describe("Those that ended in planned waiting, and so do not count as failed tries."),
  away: z.int().min(0).default(0).describe("Those of them that were put off because a server was away."),
  begun: z
    .int()
    .min(1)
    .optional()
    .describe("How often a handler began with it: what only waited in the hand of a process that died was not."),
});
