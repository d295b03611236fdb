/** Pure: decides which run a FineTune requests, and what its status says. */
import {
  type AdapterVersion,
  crdGroup,
  fineTuneSpec,
  type FineTunePhase,
  type FineTuneStatus,
  parseRunSpec,
  type Problem,
  problemsOf,
  type DatasetOfResource,
  type RunSpec,
  type RunState,
  terminalPhases,
} from "@loraline/contracts";
import { conditionsOf, duration, type Milestone, type Said } from "./conditions.ts";

/** Metadata of the run that names its resource: it shows a reader where the run came from, and finds runs whose resource is gone. */
const marks = {
  resource: `${crdGroup}/finetune`,
  uid: `${crdGroup}/finetune-uid`,
  /** UID of the namespace, because another cluster on the same NATS may have a namespace of the same name. */
  namespaceUid: `${crdGroup}/namespace-uid`,
} as const;

interface Origin {
  namespace: string;
  namespaceUid: string;
  name: string;
  uid: string;
}

export interface Wanted {
  spec: RunSpec;
  dataset: DatasetOfResource | undefined;
  validation: DatasetOfResource | undefined;
}

/** Makes the run spec from a FineTune's spec; `ids` are the ids of datasets that come with it. */
export function decideWanted(
  raw: unknown,
  ids: { dataset: string; validation: string },
  origin: Origin,
): Wanted | { problems: [Problem, ...Problem[]] } {
  const parsed = fineTuneSpec.safeParse(raw);
  if (!parsed.success) return { problems: problemsOf(parsed.error) as [Problem, ...Problem[]] };
  const { dataset, validation } = parsed.data;
  const given = raw as Record<string, unknown>;
  const judged = parseRunSpec({
    ...given,
    ...(dataset === undefined ? {} : { dataset: dataset.id ?? ids.dataset }),
    ...(validation === undefined ? {} : { validation: validation.id ?? ids.validation }),
    metadata: {
      ...parsed.data.metadata,
      [marks.resource]: `${origin.namespace}/${origin.name}`,
      [marks.uid]: origin.uid,
      [marks.namespaceUid]: origin.namespaceUid,
    },
  });
  return "problems" in judged ? judged : { spec: judged.spec, dataset, validation };
}

/** The resource that requested the run; undefined: it was requested through another API. */
export function originOf({ spec }: Pick<RunState, "spec">): Origin | undefined {
  const { [marks.resource]: of, [marks.uid]: uid, [marks.namespaceUid]: namespaceUid } = spec.metadata ?? {};
  const [namespace, name] = of?.split("/") ?? [];
  if (uid === undefined || namespaceUid === undefined || namespace === undefined || name === undefined) return undefined;
  return { namespace, name, uid, namespaceUid };
}

/**
 * Whether a FineTune waits because of this problem. It waits for a base that no engine serves yet, since it may be applied together with the
 * chart that brings the engine, for a base whose files are missing, for its ConfigMap, and while the tenant has all that it may have. Other
 * problems are final: a FineTune cannot be edited.
 */
export const isWaitedFor = (problem: Problem): boolean =>
  problem.code === "BASE_UNKNOWN" || problem.code === "BASE_UNAVAILABLE" || isToldByNobody(problem);

/** Whether nobody tells when what is waited for is there. */
export const isToldByNobody = ({ code }: Problem): boolean =>
  code.startsWith("CONFIGMAP_") || code === "QUOTA_HISTORY" || code === "QUOTA_RUNS_WAITING";

/** Why a run waits, or why its attempt ended. */
export interface Wait {
  attempt: number;
  reason: string;
  message: string;
}

export interface Observed {
  name: string;
  tenant: string;
  generation: number;
  before: FineTuneStatus | undefined;
  runId: string;
  /** The run, if it was requested; otherwise `problems` say why not. */
  run: RunState | undefined;
  /** What the run waited for since the status was last written. */
  waited: readonly Wait[];
  problems: readonly Problem[];
  traceId: string | undefined;
  /** The version that the run made, and on how many replicas it is proven now. */
  version: { version: AdapterVersion; proven: number; of: number } | undefined;
  /** ISO 8601. */
  now: string;
}

export function decideFineTune(observed: Observed): { status: FineTuneStatus; milestones: Milestone[] } {
  const { generation, before, now } = observed;
  const status = observed.run === undefined ? notAsked(observed) : asked(observed, observed.run);
  const { said, ...rest } = status;
  const conditions = conditionsOf({ ...said, ...readiness(said) }, { before: before?.conditions, generation, now });
  const next: FineTuneStatus = { observedGeneration: generation, runId: observed.runId, ...rest, conditions };
  return { status: next, milestones: milestonesOf(before, next, observed) };
}

type Parts = Omit<FineTuneStatus, "conditions"> & { said: Record<string, Said> };

const unknown = (reason: string, message: string): Said => ({ status: "Unknown", reason, message });
const never = (reason: string, message: string): Said => ({ status: "False", reason, message });
const done = (reason: string, message: string): Said => ({ status: "True", reason, message });

/**
 * What tools ask that know nothing of FineTunes (Flux, `kubectl wait`, kstatus): `Ready` is True when the adapter is served, and `Stalled` is there,
 * and True, when it never will be.
 */
function readiness({ Accepted, Tokenized, Trained, Served, Finished }: Record<string, Said>): Record<string, Said> {
  const stages = [Accepted, Tokenized, Trained, Served].filter((one) => one !== undefined);
  if (Served?.status === "True") return { Ready: Served };
  if (Finished?.status === "True")
    return { Ready: never(Finished.reason, Finished.message), Stalled: done(Finished.reason, Finished.message) };
  const { reason = "UnderWay", message = "" } = stages.find(({ status }) => status !== "True") ?? {};
  return { Ready: unknown(reason, message) };
}

function notAsked({ problems, now }: Observed): Parts {
  const [problem] = problems;
  const message = problems.map((each) => each.message).join(" ");
  if (problem === undefined || isWaitedFor(problem)) {
    const { code, message: why } = problem ?? { code: "Pending", message: "the run is being asked for" };
    const later = unknown("NotAccepted", why);
    return {
      phase: "Pending",
      message: why,
      said: { Accepted: never(code, why), Tokenized: later, Trained: later, Served: later, Finished: never("Pending", why) },
    };
  }
  const no = never(problem.code, message);
  return {
    phase: "Rejected",
    message,
    error: problem,
    finishedAt: now,
    said: { Accepted: no, Tokenized: no, Trained: no, Served: no, Finished: done(problem.code, message) },
  };
}

const words = { served: "Served", rejected: "Rejected", failed: "Failed", cancelled: "Cancelled" } as const;

function asked({ tenant, version: held, traceId }: Observed, run: RunState): Parts {
  const { progress, trained, tokens, served, queue } = run;
  const ended = terminalPhases.has(run.phase);
  const error = run.error ?? (run.phase === "cancelled" ? { code: "CANCELLED", message: "the run was cancelled" } : null);
  const missed: Said | undefined = ended && error !== null ? never(error.code, error.message) : undefined;
  const version = served?.version ?? held?.version.version;
  const converged =
    held === undefined
      ? served === null
        ? undefined
        : `${served.replicas}/${served.replicas}`
      : typeof held.version.servedOf === "number"
        ? `${held.version.servedOn ?? 0}/${held.version.servedOf}`
        : `${held.proven}/${held.of}`;
  const steps = trained?.steps ?? progress?.step;
  const allSteps = trained?.steps ?? progress?.totalSteps;
  const loss = trained?.trainLoss ?? progress?.loss;
  const isUnderWay = run.phase === "running" && progress !== null;
  const waiting = queue === null ? undefined : unknown(reasonOf(queue.reason), queue.message);

  const training =
    trained !== null
      ? done(
          "Trained",
          `${trained.steps} steps${trained.evaluation === null ? "" : `; held-out loss ${lossOf(trained.evaluation.base_loss)} → ${lossOf(trained.evaluation.adapter_loss)}`}`,
        )
      : (missed ??
        waiting ??
        (run.phase === "running" ? unknown("Training", `attempt ${run.attempt} is running`) : unknown("Waiting", "for the tokens")));
  const serving =
    served !== null
      ? done(
          "Served",
          `version ${served.version} is proven on ${converged ?? served.replicas} replicas${served.promoted ? " and promoted" : ""}`,
        )
      : (missed ??
        (trained === null
          ? unknown("Waiting", "for the training")
          : (waiting ??
            (held === undefined
              ? unknown("Converging", "the version is being judged")
              : held.of === 0
                ? unknown("NO_REPLICA", `version ${held.version.version}: no ready replica should hold it`)
                : unknown("Converging", `version ${held.version.version} is proven on ${converged} replicas`)))));
  const tokenizing =
    tokens !== null
      ? done(
          "Tokenized",
          `${tokens.totals.sequences} sequences, ${tokens.totals.tokens} tokens${tokens.cacheHit ? " (known already)" : ""}`,
        )
      : (missed ?? waiting ?? unknown("Tokenizing", tokenizingWords(progress)));
  const finished = ended
    ? done(error?.code ?? words[run.phase as keyof typeof words], error?.message ?? serving.message)
    : never("UnderWay", run.phase);
  const message = error?.message ?? queue?.message ?? (served !== null || trained !== null ? serving.message : undefined);

  const heldOut = trained?.evaluation ?? null;
  return defined({
    phase: (run.phase.charAt(0).toUpperCase() + run.phase.slice(1)) as FineTunePhase,
    message,
    datasetId: run.spec.dataset,
    attempt: run.attempt === 0 ? undefined : run.attempt,
    step: steps === undefined || allSteps === undefined || allSteps === 0 ? undefined : `${steps}/${allSteps}`,
    loss: loss === undefined || loss === null ? undefined : lossOf(loss),
    eta: isUnderWay && progress.etaSeconds !== null ? duration(progress.etaSeconds) : undefined,
    heldOutLoss: heldOut === null ? undefined : { base: lossOf(heldOut.base_loss), adapter: lossOf(heldOut.adapter_loss) },
    version,
    digest: served?.digest ?? held?.version.digest,
    model: version === undefined ? undefined : `${tenant}/${run.spec.adapter}@${version}`,
    promoted: served?.promoted,
    converged,
    error: error === null ? undefined : { ...error, param: error.param ?? undefined },
    traceId,
    startedAt: run.startedAt ?? undefined,
    finishedAt: run.finishedAt ?? undefined,
    said: {
      Accepted: run.phase === "rejected" && missed !== undefined ? missed : done("Requested", `run ${run.runId}`),
      Tokenized: tokenizing,
      Trained: training,
      Served: serving,
      Finished: finished,
    },
  });
}

export const lossOf = (loss: number): string => loss.toFixed(4);

/** Turns a code into a reason that Kubernetes accepts: a single word. */
const reasonOf = (text: string): string => (/^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$/.test(text) ? text : "Queued");

type Defined<T> = { [K in keyof T]: Exclude<T[K], undefined> };
/** Drops fields that are undefined, because a status that is applied must not contain them. */
export const defined = <T extends object>(value: T): Defined<T> =>
  Object.fromEntries(Object.entries(value).filter(([, one]) => one !== undefined)) as Defined<T>;

const tokenizingWords = (progress: RunState["progress"]): string =>
  progress?.phase === "tokenize" && typeof progress.total === "number"
    ? `${progress.done ?? 0} of ${progress.total} records are tokenized`
    : "the dataset is read and tokenized";

/** Conditions that say again what others say. */
const summaries: ReadonlySet<string> = new Set(["Finished", "Ready", "Stalled"]);

/** The milestones since the status before. If they are found again after a crash, they are the same Events. */
function milestonesOf(before: FineTuneStatus | undefined, next: FineTuneStatus, { run, waited }: Observed): Milestone[] {
  const milestones: Milestone[] = [];
  const was = (type: string) => before?.conditions?.find((condition) => condition.type === type);
  for (const { type, status, reason, message } of next.conditions ?? []) {
    const same = was(type)?.status === status && was(type)?.reason === reason;
    if (same || summaries.has(type)) continue;
    if (status === "True") milestones.push({ type: "Normal", reason, message, key: type });
    // The end of a run makes several conditions False with the same reason; only the first of them becomes an Event.
    else if (status === "False" && !milestones.some((told) => told.reason === reason))
      milestones.push({ type: "Warning", reason, message, key: `${type}-${reason}` });
  }
  const notices = run?.spec.notices ?? [];
  if (notices.length > 0 && was("Accepted")?.status !== "True")
    milestones.push({ type: "Warning", reason: "FieldsNotUsed", message: notices.map((one) => one.message).join(" "), key: "notices" });
  for (const { attempt, reason, message } of waited)
    milestones.push({ type: "Warning", reason: reasonOf(reason), message, key: `queue-${attempt}-${reason}` });
  if (run !== undefined && run.attempt > (before?.attempt ?? 0))
    milestones.push({ type: "Normal", reason: "Started", message: `attempt ${run.attempt} is running`, key: `attempt-${run.attempt}` });
  return milestones;
}
