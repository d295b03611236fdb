/** `/v1/fine_tuning/jobs`: OpenAI's wire format over runs. */
import { isDeepStrictEqual } from "node:util";
import {
  type DatasetState,
  runCancelRequested,
  runPauseRequested,
  runResumeRequested,
  type RunEvent,
  runEvents,
  runProgress,
  runRequested,
  type RunSpec,
  type RunState,
} from "@loraline/contracts";
import { RetryLaterError, traceIdOf } from "@loraline/runtime";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { ulid } from "ulid";
import type { Caller } from "../access/auth.ts";
import { checkModel, seesAdapter } from "../access/decide-models.ts";
import type { GatewayContext } from "../context.ts";
import { enginesFor } from "../inference/decide-route.ts";
import { badRequest, badRequestOf, noSuchRun } from "../errors.ts";
import { idempotencyKeyOf, idsOfKey, madeEarlier } from "../idempotency.ts";
import { cursorOf, jobEventOf, newestFirst, type PlacedEvent } from "./job-events.ts";
import { checkpointObjectsOf, jobObjectOf, mayPause } from "./job-object.ts";
import { datasetIdOf, ownAdapterName, runIdOf } from "../openai-ids.ts";
import { idOfCursor, pageOf, pageOfItems, pageQueryOf } from "../paging.ts";
import { parseJobBody, runSpecFromJob } from "./run-spec-from-job.ts";
import { type JoinTrace, requestSpan } from "../tracing.ts";

const foldWithinMs = 1000;
const cancelWithinMs = 2000;
/** The SDKs retry without an idempotency key, so an equal request within this time counts as the same request. */
const retryWindowMs = 2 * 60_000;
/** A run that is requested later after the upload has a trace of its own. */
const uploadTraceMs = 60 * 60_000;
/** The longest time between an event's own time and its storing. */
const publishingTakesMs = 5000;

type RunEventDef = (typeof runEvents)[number] | typeof runProgress;

const identified = <T extends { id: string }>(): { idOf: (item: T) => string; view: (item: T) => T } => ({
  idOf: (item) => item.id,
  view: (item) => item,
});

export function fineTuningRoutes(context: GatewayContext): (app: FastifyInstance) => void {
  const { bus, quotas, state, table } = context;

  const existing = async (request: FastifyRequest): Promise<RunState> => {
    const { id } = request.params as { id: string };
    const runId = runIdOf(id);
    const run = runId === undefined ? undefined : await state.run(request.caller.tenant, runId);
    if (run === undefined) {
      const rejected = runId === undefined ? undefined : await state.rejection(request.caller.tenant, runId);
      throw noSuchRun("fine-tuning job", id, "fine_tuning_job_id", rejected);
    }
    checkModel(request.caller, run.spec.adapter);
    return run;
  };

  /** @throws PermanentError 400 `invalid_training_file` or `invalid_validation_file`. */
  const usableDataset = async (tenant: string, fileId: string, param: "training_file" | "validation_file"): Promise<DatasetState> => {
    const datasetId = datasetIdOf(fileId);
    const dataset = datasetId === undefined ? undefined : await state.dataset(tenant, datasetId);
    const code = param === "training_file" ? "invalid_training_file" : "invalid_validation_file";
    const refuse = (why: string) => badRequest(code, `${param}: ${why}`, param);
    if (dataset === undefined || dataset.status === "deleted") throw refuse(`there is no file "${fileId}". Upload it first.`);
    if (dataset.status === "rejected") {
      throw refuse(`"${fileId}" (${dataset.filename}) cannot be trained on: ${dataset.error?.message ?? "every row was rejected"}`);
    }
    return dataset;
  };

  /** The run that this request has already started, if it is a retry. */
  const earlierTry = async (
    caller: Caller,
    request: FastifyRequest,
    ids: readonly string[],
    spec: RunSpec,
  ): Promise<RunState | undefined> => {
    const earlier = await madeEarlier(ids, {
      what: "job",
      read: (id) => state.run(caller.tenant, id),
      isSame: (known) => isDeepStrictEqual(known.spec, spec),
    });
    if (earlier !== undefined) return earlier;
    if (ids.length > 0 || !(Number(request.headers["x-stainless-retry-count"]) > 0)) return undefined;
    const shown = (run: RunState): boolean => isDeepStrictEqual(run.spec, spec);
    return (await state.runPage(caller.tenant, { limit: 1, since: Date.now() - retryWindowMs, shown }))?.items[0];
  };

  /**
   * The first run on a new dataset continues the upload's trace, so that one trace goes from the upload to the first token.
   * A later run, and one whose caller brings a trace of its own, has another trace and links to it.
   */
  const joinDataset: JoinTrace = async (request, incoming) => {
    const fileId = (request.body as { training_file?: unknown } | undefined)?.training_file;
    const datasetId = typeof fileId === "string" ? datasetIdOf(fileId) : undefined;
    const { tenant } = request.caller;
    const dataset = datasetId === undefined ? undefined : await state.dataset(tenant, datasetId);
    const trace = dataset?.trace ?? undefined;
    if (dataset === undefined || trace === undefined || (incoming !== undefined && traceIdOf(incoming) === traceIdOf(trace))) return {};
    if (incoming !== undefined) return { links: [trace] };
    const since = Date.parse(dataset.receivedAt);
    // Of a dataset that has been there for long, it would take long to find out, and the trace of its upload is then over.
    if (Date.now() - since > uploadTraceMs) return { links: [trace] };
    const earlier = await state.runPage(tenant, { limit: 1, since, shown: ({ spec }) => spec.dataset === datasetId });
    return earlier?.items.length === 0 ? { parent: trace } : { links: [trace] };
  };

  return (app) => {
    app.post("/fine_tuning/jobs", { config: { join: joinDataset } }, async (request) => {
      const { tenant, by } = request.caller;
      const parsed = parseJobBody(request.body);
      if ("problems" in parsed) throw badRequestOf(parsed.problems);
      const { body } = parsed;
      const training = await usableDataset(tenant, body.training_file, "training_file");
      if (typeof body.validation_file === "string") await usableDataset(tenant, body.validation_file, "validation_file");
      const engines = enginesFor(table.view(), tenant);
      if (engines.length === 0) {
        throw new RetryLaterError("NO_ENGINE", 5000, "No engine is registered yet, so no base is known. Try again when one is up.");
      }
      const made = runSpecFromJob(body, { datasetId: training.datasetId, filename: training.filename, engines });
      if ("problems" in made) throw badRequestOf(made.problems);
      const { spec } = made;
      checkModel(request.caller, spec.adapter);
      if (spec.init_from !== undefined) checkModel(request.caller, ownAdapterName(tenant, spec.init_from));

      const key = idempotencyKeyOf(request.headers);
      const ids = key === undefined ? [] : idsOfKey({ tenant, key, nowMs: Date.now() });
      const earlier = await earlierTry(request.caller, request, ids, spec);
      if (earlier !== undefined) return jobObjectOf(earlier);

      await quotas.admitRun(tenant, spec);
      const runId = ids[0] ?? ulid();
      requestSpan()?.setAttributes({ "loraline.run.id": runId, "loraline.dataset.id": spec.dataset });
      await bus.publish(runRequested, { tenant, id: runId }, { spec, by });
      await state.runFolded(tenant, runId, () => true, foldWithinMs);
      const run = await state.run(tenant, runId);
      if (run === undefined) throw new Error(`run ${runId} was stored, but cannot be read back`);
      return jobObjectOf(run);
    });

    app.get("/fine_tuning/jobs", async (request) => {
      const query = request.query as Record<string, string>;
      const page = pageQueryOf(query, { limit: 20, max: 100 });
      const wanted = Object.entries(query).flatMap(([name, value]) => {
        const field = /^metadata\[(.+)\]$/.exec(name)?.[1];
        return field === undefined ? [] : [[field, value] as const];
      });
      const shown = ({ spec }: RunState): boolean =>
        seesAdapter(request.caller, spec.adapter) && wanted.every(([field, value]) => spec.metadata?.[field] === value);
      return pageOfItems(
        await state.runPage(request.caller.tenant, { ...page, after: idOfCursor(page.after, runIdOf), shown }),
        page,
        jobObjectOf,
      );
    });

    app.get("/fine_tuning/jobs/:id", async (request) => jobObjectOf(await existing(request)));

    app.post("/fine_tuning/jobs/:id/cancel", async (request) => {
      const { tenant, by, actor } = request.caller;
      const run = await existing(request);
      if (run.phase === "cancelled") return jobObjectOf(run);
      const refuseEnded = (ended: RunState): void => {
        if (ended.finishedAt === null || ended.phase === "cancelled") return;
        const { status } = jobObjectOf(ended);
        throw badRequest("job_not_cancellable", `The job has already ended (${status}); there is nothing to cancel.`);
      };
      refuseEnded(run);
      await bus.publish(runCancelRequested, { tenant, id: run.runId }, { by }, { traceparent: run.trace, actor });
      await state.runFolded(tenant, run.runId, ({ finishedAt }) => finishedAt !== null, cancelWithinMs);
      const after = await existing(request);
      // The run may have ended before the cancellation was processed.
      refuseEnded(after);
      return jobObjectOf(after);
    });

    for (const [verb, event] of [
      ["pause", runPauseRequested],
      ["resume", runResumeRequested],
    ] as const) {
      app.post(`/fine_tuning/jobs/:id/${verb}`, async (request) => {
        const { tenant, by, actor } = request.caller;
        const run = await existing(request);
        const isPaused = run.paused === true;
        if (!mayPause.has(run.phase)) {
          const code = verb === "pause" ? "job_not_pausable" : "job_not_paused";
          throw badRequest(code, `The job cannot be ${verb}d: it is ${run.phase}.`);
        }
        if (verb === "resume" && !isPaused) throw badRequest("job_not_paused", "The job is not paused; it goes on by itself.");
        if (verb === "pause" && isPaused) return jobObjectOf(run);
        await bus.publish(event, { tenant, id: run.runId }, { by }, { traceparent: run.trace, actor });
        await state.runFolded(tenant, run.runId, ({ paused = false }) => paused === (verb === "pause"), foldWithinMs);
        return jobObjectOf(await existing(request));
      });
    }

    app.get("/fine_tuning/jobs/:id/events", async (request) => {
      const page = pageQueryOf(request.query, { limit: 20, max: 1000 });
      const { tenant, runId, spec } = await existing(request);
      const at = { tenant, id: runId };
      const kinds = { runs: runEvents, progress: [runProgress] } as const;
      // Of both streams only the part that the page needs is read: a run may have a hundred thousand steps, and as many checkpoints.
      const cursor = page.after === undefined ? undefined : cursorOf(page.after);
      const [last] =
        cursor === undefined ? [] : await bus.newest<RunEventDef>(kinds[cursor.stream], at, { before: cursor.seq + 1, limit: 1 });
      if (page.after !== undefined && last?.seq !== cursor?.seq) return pageOf([], page, identified());
      const until = last === undefined ? {} : { until: new Date(Date.parse(last.time) + publishingTakesMs) };
      const range = (stream: keyof typeof kinds) => (cursor?.stream === stream ? { before: cursor.seq + 1 } : until);
      const keep = (event: RunEvent): PlacedEvent => jobEventOf(event, spec.base);
      for (let limit = page.limit + 2; ; limit *= 4) {
        const [own, progress] = await Promise.all([
          bus.newest<RunEventDef, PlacedEvent>(kinds.runs, at, { ...range("runs"), limit }, keep),
          bus.newest<RunEventDef, PlacedEvent>(kinds.progress, at, { ...range("progress"), limit }, keep),
        ]);
        const events = newestFirst([...own, ...progress]);
        const after = events.slice(events.findIndex(({ id }) => id === page.after) + 1);
        // If more of a stream was read than the page has room for, older events of it cannot be on this page.
        const enough = (stream: string, read: readonly unknown[]): boolean =>
          read.length < limit || after.filter(({ id }) => cursorOf(id)?.stream === stream).length > page.limit;
        if (enough("runs", own) && enough("progress", progress)) return pageOf(events, page, identified());
      }
    });

    app.get("/fine_tuning/jobs/:id/checkpoints", async (request) => {
      const page = pageQueryOf(request.query, { limit: 10, max: 100 });
      return pageOf(checkpointObjectsOf(await existing(request)), page, identified());
    });
  };
}
