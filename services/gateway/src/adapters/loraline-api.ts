/** `/v1/loraline/`: routes for what OpenAI's API does not have. */
import { hash } from "node:crypto";
import {
  adapterKeepRequested,
  adapterKey,
  adapterPlaceRequested,
  adapterPromoteRequested,
  adapterRollbackRequested,
  type AdapterState,
  type adapterView,
  buckets,
  canaryTraffic,
  type DeadLetterView,
  everyKeyOf,
  everyTraffic,
  holdingKey,
  keepBody,
  parseHoldingKey,
  parseSubject,
  tenantOfSubject,
  placeBody,
  promoteBody,
  type ReplicaHolding,
  replicaKey,
  type ReplicaState,
  rollbackBody,
  runFilters,
  runMetricsQuery,
  runRequested,
  type RunState,
  type TrafficState,
} from "@loraline/contracts";
import { spansOfTenant } from "@loraline/bus";
import { PermanentError, traceIdOf } from "@loraline/runtime";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { ulid } from "ulid";
import type { z } from "zod";
import { createAudited } from "../access/audit.ts";
import { checkModel, seesAdapter } from "../access/decide-models.ts";
import { parsedBody, parsedQuery } from "../body.ts";
import type { GatewayContext } from "../context.ts";
import { createCommandFollower, type Unfollowed } from "./follow-command.ts";
import { enginesOf } from "./engines-view.ts";
import { badRequest, noSuchRun, notFound } from "../errors.ts";
import { idempotencyKeyOf } from "../idempotency.ts";
import { datasetIdOf, ownAdapterName, runIdOf } from "../openai-ids.ts";
import { dataOfPage, idOfCursor, pageQueryOf, ulidOf } from "../paging.ts";
import { metricsOf } from "../jobs/run-metrics.ts";
import { createWorkingSet } from "../inference/working-set.ts";

const aliasStays: Unfollowed = ({ adapter, alias }) => ({
  code: "alias_not_moved",
  message: `The alias of ${adapter} still points to ${alias === null ? "no version" : `version ${alias}`}`,
});
const placementStays: Unfollowed = ({ adapter }) => ({ code: "not_placed", message: `The placement of ${adapter} is as it was` });
const keepStays: Unfollowed = ({ adapter }) => ({ code: "keep_not_set", message: `What is kept of ${adapter} is as it was` });

export async function loralineRoutes(context: GatewayContext): Promise<(app: FastifyInstance) => void> {
  const { bus, state, table, readTrace, log } = context;
  const [adapters, holdings, traffic] = await Promise.all([
    bus.bucket(buckets.adapters),
    bus.bucket(buckets.holdings),
    bus.bucket(buckets.traffic),
  ]);
  const audited = createAudited(context);
  const commands = await createCommandFollower(context);
  const workingSet = await createWorkingSet({ bus, signal: context.signal });

  const existingRun = async (request: FastifyRequest): Promise<RunState> => {
    const { runId } = request.params as { runId: string };
    const run = await state.run(request.caller.tenant, runId);
    if (run === undefined) throw noSuchRun("run", runId, "runId", await state.rejection(request.caller.tenant, runId));
    checkModel(request.caller, run.spec.adapter);
    return run;
  };

  const existingAdapter = async (request: FastifyRequest): Promise<AdapterState> => {
    const { adapter } = request.params as { adapter: string };
    const { tenant } = request.caller;
    const name = ownAdapterName(tenant, adapter);
    const found = await commands.adapter(tenant, name);
    if (found === undefined) throw notFound("adapter", adapter, "adapter");
    return found;
  };

  /**
   * The replicas of an adapter's engine, without other tenants' adapters and without the replicas' addresses, which tenants must not see.
   * @param held - what KV `holdings` has of this adapter, by replica.
   */
  const replicasOf = (adapter: AdapterState, held: ReadonlyMap<string, ReplicaHolding>): ReplicaState[] =>
    table
      .view()
      .replicasOf(adapter.engine)
      .replicas.filter(({ fresh }) => fresh)
      .map(({ state: replica }) => {
        const holding = held.get(replicaKey(replica));
        const counts = holding?.incarnation === replica.incarnation && (holding.agent ?? null) === (replica.agent ?? null);
        const names = new Set(adapter.versions.map(({ engineName }) => engineName));
        const known = counts ? holding.adapters.filter(({ engineName }) => names.has(engineName)) : [];
        return { ...replica, url: "", adapters: known };
      });
  /** What the replicas hold of one adapter of a tenant, or of all of them (`*`): by the adapter's key, then by replica. */
  const readHoldings = async (tenant: string, adapter: string): Promise<Map<string, Map<string, ReplicaHolding>>> => {
    const found = new Map<string, Map<string, ReplicaHolding>>();
    for (const { key, value } of await holdings.entries(holdingKey({ replicaKey: "*.*", adapterKey: adapterKey({ tenant, adapter }) }), {
      skipUnreadable: true,
    })) {
      const parsed = parseHoldingKey(key);
      const ofAdapter = found.get(parsed.adapterKey) ?? new Map<string, ReplicaHolding>();
      found.set(parsed.adapterKey, ofAdapter.set(parsed.replicaKey, value));
    }
    return found;
  };
  /** Makes the views of adapters of one tenant. The gateways' counts are read only if one of the adapters has a canary. */
  const viewsOf = async (states: readonly AdapterState[]): Promise<z.output<typeof adapterView>[]> => {
    const [first, ...others] = states;
    if (first === undefined) return [];
    const held = await readHoldings(first.tenant, others.length === 0 ? first.adapter : "*");
    const reports = states.some(({ canary }) => canary)
      ? (await traffic.entries(everyTraffic.canary, { skipUnreadable: true })).map(({ value }) => value)
      : [];
    return states.map((adapter) => ({
      adapter,
      replicas: replicasOf(adapter, held.get(adapterKey(adapter)) ?? new Map()),
      canary: canaryCounts(adapter, reports),
    }));
  };
  const viewOf = async (adapter: AdapterState) => (await viewsOf([adapter]))[0];

  /** Waits until the controller has carried out the command (the message with this sequence), and returns the adapter's view. */
  const viewWhen = async (request: FastifyRequest, command: number, holds: (adapter: AdapterState) => boolean, unfollowed = aliasStays) => {
    const { tenant, adapter } = await existingAdapter(request);
    return viewOf(await commands.follow({ tenant, adapter }, command, holds, unfollowed));
  };

  const letterOf = async (request: FastifyRequest): Promise<DeadLetterView> => {
    const { seq } = request.params as { seq: string };
    const letter = /^[1-9]\d{0,14}$/.test(seq) ? await bus.deadLetters.get(Number(seq)) : undefined;
    if (letter === undefined || tenantOfSubject(letter.subject) !== request.caller.tenant) throw notFound("failed message", seq, "seq");
    return letter;
  };

  /**
   * Refuses to send a failed message of an ended run again: services ignore such messages, so it would have no effect.
   * @throws PermanentError 409 `run_ended`.
   */
  const checkRedrive = async ({ subject, durable }: DeadLetterView): Promise<void> => {
    const at = parseSubject(subject);
    if (at?.noun !== "run" || durable.startsWith("projector-")) return;
    const run = await state.run(at.tenant, at.id);
    if (run === undefined || run.finishedAt === null) return;
    throw new PermanentError(
      "run_ended",
      `Run ${at.id} has ended (${run.phase}), so this message would change nothing. Mend what the letter says and request the run again.`,
      { status: 409 },
    );
  };

  return (app) => {
    app.get("/loraline/runs", async ({ caller, query }) => {
      const page = pageQueryOf(query, { limit: 1000, max: 1000 });
      const after = idOfCursor(page.after, (id) => runIdOf(id) ?? ulidOf(id));
      const wanted = parsedQuery(runFilters, query);
      const adapter = wanted.adapter && ownAdapterName(caller.tenant, wanted.adapter);
      const dataset = wanted.dataset && (datasetIdOf(wanted.dataset) ?? wanted.dataset);
      const fits = (want: string | undefined, is: string | undefined): boolean => want === undefined || want === is;
      const shown = ({ spec, phase }: RunState): boolean =>
        seesAdapter(caller, spec.adapter) &&
        fits(wanted.phase, phase) &&
        fits(adapter, spec.adapter) &&
        fits(wanted.base, spec.base) &&
        fits(dataset, spec.dataset);
      return dataOfPage(await state.runPage(caller.tenant, { ...page, after, shown }), page);
    });
    app.get("/loraline/runs/:runId", existingRun);
    app.get("/loraline/runs/:runId/metrics", async (request) => {
      const { details } = parsedQuery(runMetricsQuery, request.query);
      return metricsOf(await existingRun(request), context, { details: details === "true" });
    });
    app.get("/loraline/runs/:runId/trace", async (request) => {
      const { runId, trace } = await existingRun(request);
      const traceId = traceIdOf(trace);
      if (traceId === undefined) throw notFound("trace of run", runId, "runId");
      return { traceId, spans: spansOfTenant(await readTrace(traceId), request.caller.tenant) };
    });

    app.get("/loraline/engines", (request) => ({
      data: enginesOf(table.view(), workingSet, request.caller.tenant),
    }));

    app.get("/loraline/adapters", async (request) => {
      const entries = await adapters.entries(everyKeyOf(request.caller.tenant), { skipUnreadable: true });
      const seen = entries.map(({ value }) => value).filter(({ adapter }) => seesAdapter(request.caller, adapter));
      const states = seen.toSorted((a, b) => (a.adapter < b.adapter ? -1 : 1));
      return { data: await viewsOf(states) };
    });
    app.get("/loraline/adapters/:adapter", async (request) => viewOf(await existingAdapter(request)));

    app.post("/loraline/adapters/:adapter/promote", async (request) => {
      const { tenant, by, actor } = request.caller;
      const adapter = await existingAdapter(request);
      const { version, canary } = parsedBody(promoteBody, request.body);
      checkVersion(adapter, version);
      if (adapter.alias === version && !adapter.canary && !adapter.awaiting) return viewOf(adapter);
      const key = commandKeyOf(request);
      const { seq } = await bus.publish(adapterPromoteRequested, { tenant, id: adapter.adapter }, { version, canary, by }, { key, actor });
      return viewWhen(request, seq, (now) => now.alias === version && !now.canary && !now.awaiting);
    });

    app.post("/loraline/adapters/:adapter/place", async (request) => {
      const { tenant, by, actor } = request.caller;
      const adapter = await existingAdapter(request);
      const wished = parsedBody(placeBody, request.body);
      const key = commandKeyOf(request);
      const { seq } = await bus.publish(adapterPlaceRequested, { tenant, id: adapter.adapter }, { placement: wished, by }, { key, actor });
      return viewWhen(request, seq, ({ placement }) => JSON.stringify(placement) === JSON.stringify(wished), placementStays);
    });

    app.post("/loraline/adapters/:adapter/keep", async (request) => {
      const { tenant, by, actor } = request.caller;
      const adapter = await existingAdapter(request);
      const { keep } = parsedBody(keepBody, request.body);
      const key = commandKeyOf(request);
      const { seq } = await bus.publish(adapterKeepRequested, { tenant, id: adapter.adapter }, { keep, by }, { key, actor });
      return viewWhen(request, seq, (now) => now.keep === keep, keepStays);
    });

    app.post("/loraline/adapters/:adapter/rollback", async (request) => {
      const { tenant, by, actor } = request.caller;
      const adapter = await existingAdapter(request);
      const { version } = parsedBody(rollbackBody, request.body ?? {});
      if (adapter.alias === null) throw badRequest("nothing_promoted", `${adapter.adapter} has no promoted version to go back from.`);
      if (version !== undefined) checkVersion(adapter, version);
      if (version === adapter.alias && !adapter.canary && !adapter.awaiting) return viewOf(adapter);
      const key = commandKeyOf(request);
      const { seq } = await bus.publish(adapterRollbackRequested, { tenant, id: adapter.adapter }, { version, by }, { key, actor });
      return viewWhen(request, seq, (now) => now.alias === version && !now.canary && !now.awaiting);
    });

    app.get("/loraline/dlq", async (request) => ({ data: await bus.deadLetters.list(request.caller.tenant) }));
    app.get("/loraline/dlq/:seq", letterOf);
    app.delete("/loraline/dlq/:seq", async (request) => {
      const letter = await letterOf(request);
      const { seq, subject, durable, code } = letter;
      await audited(request, { action: "failed-message.delete", target: String(seq), details: { subject, durable, code } }, () =>
        bus.deadLetters.remove(seq),
      );
      log.info({ letter: seq, subject, by: request.caller.by }, "failed message deleted");
      return letter;
    });
    app.post("/loraline/dlq/:seq/redrive", async (request) => {
      const letter = await letterOf(request);
      await checkRedrive(letter);
      // Whatever it is, it is stored once more.
      await context.quotas.admitEvent(request.caller.tenant, runRequested);
      const { seq, subject, durable, code } = letter;
      await audited(request, { action: "failed-message.redrive", target: String(seq), details: { subject, durable, code } }, () =>
        bus.deadLetters.redrive(seq, request.caller.actor),
      );
      log.info({ letter: letter.seq, subject: letter.subject, by: request.caller.by }, "failed message redriven");
      return letter;
    });
  };
}

function canaryCounts({ canary, versions }: AdapterState, reports: readonly TrafficState[]): z.output<typeof adapterView>["canary"] {
  const [version, from] = [canary?.version, canary?.from].map((number) => versions.find((known) => known.version === number)?.engineName);
  if (!canary || version === undefined || from === undefined) return null;
  const { unknown: _unknown, ...counts } = canaryTraffic(canary, { version, from }, reports, Date.now());
  return counts;
}

/** The key of a command: the same for a repeated request, but another one for another body with the same `Idempotency-Key`. */
function commandKeyOf({ headers, body }: FastifyRequest): string {
  const given = idempotencyKeyOf(headers);
  return given === undefined ? ulid() : hash("sha256", `${given}\n${JSON.stringify(body ?? {})}`);
}

function checkVersion(adapter: AdapterState, number: number): void {
  const version = adapter.versions.find((candidate) => candidate.version === number);
  if (version === undefined) {
    const known = adapter.versions.map((candidate) => candidate.version).join(", ") || "none";
    throw badRequest("version_unknown", `${adapter.adapter} has no version ${number}. Its versions: ${known}.`, "version");
  }
  if (version.status !== "desired" && version.status !== "retired") {
    const why = version.reason === null ? "" : `: ${version.reason.message}`;
    throw badRequest("version_not_servable", `Version ${number} of ${adapter.adapter} is ${version.status}${why}.`, "version");
  }
}
