/** The gateway's metrics of all tenants, for the operator: what requests came to, and what engines made of them. */
import type { EngineRecord } from "@loraline/contracts";
import { exemplarOf, type Metrics } from "@loraline/runtime";

/** How many models have their own series; further models are counted as `other`. */
const modelsAtMost = 200;
/** A tenant with more models may lose the series of one to a tenant that has none. */
const fewModels = 10;
/** A model that was not asked for this long may lose its series to another model. */
const idleAfterMs = 60 * 60_000;

interface MeasuredModel {
  tenant: string;
  base: string;
  adapter: string | null;
  version: number | null;
  engineModel: string;
}

interface ModelMetrics {
  begin(): void;
  /** Milliseconds. */
  firstByte(ms: number): void;
  end(outcome: "served" | "failed" | "ignored", ms: number): void;
  tokens(prompt: number, completion: number): void;
  /** No replica could be asked. */
  unanswered(): void;
}

/** An answer, whoever gave it. */
interface Answered {
  /** As in the table of routes; empty: none that is known. */
  route: string;
  method: string;
  status: number;
  /** The error's code; empty: none. */
  error: string;
  /** `unknown`: nobody whom the gateway knows. */
  tenant: string;
  /** `<tenant>/<adapter>` or a base; `unknown`: asked for, and there is none of that name; empty: the route asks no model. */
  model: string;
  seconds: number;
  traceId: string | undefined;
}

export interface GatewayMetrics {
  answered(answer: Answered): void;
  model(model: MeasuredModel): ModelMetrics;
  limited(kind: "requests" | "tokens" | "concurrency"): void;
  retried(): void;
  /** Tells how many requests wait for their tenant's turn. */
  waitingForTurn(ask: () => number): void;
  /** Tells for which engines requests wait, and how many. */
  waitingForEngines(ask: () => ReadonlyMap<string, number>): void;
  /** Tells which engines there are, and how many of each one's replicas are in which state. */
  engines(ask: () => Iterable<EngineInMetrics>): void;
}

interface EngineInMetrics {
  record: EngineRecord;
  replicas: { ready: number; silent: number; unready: number };
  /** It was scaled to zero, and nobody has missed it. */
  asleep: boolean;
}

const answerLabels = ["route", "method", "code", "error", "tenant", "model"] as const;
/** Further ones are counted under the tenant and model `other`. */
const answerSeriesAtMost = 5000;
/** Of one tenant; its further ones are counted under the model `other`: it has as many models as it likes, and each of them errors. */
const answerSeriesOfTenant = 1000;
const names = ["tenant", "base", "adapter", "version"] as const;
const seconds = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];

export function createGatewayMetrics(
  metrics: Metrics,
  { cap = modelsAtMost, now = () => performance.now() }: { cap?: number; now?: () => number } = {},
): GatewayMetrics {
  const answers = metrics.counter({
    name: "loraline_gateway_http_requests_total",
    help: "Requests that were answered, whoever answered them. code: HTTP status, 499 where the client left before; error: code of the error",
    labels: answerLabels,
  });
  const answerSeconds = metrics.histogram({
    name: "loraline_gateway_http_seconds",
    help: "From a request's headers to the end of its answer",
    labels: ["route", "method"],
    buckets: seconds,
  });
  const requests = metrics.counter({
    name: "loraline_gateway_requests_total",
    help: "Requests to models that are over. outcome: served; failed (5xx, or broken off by the engine, or no replica could be asked); ignored (refused by the engine as wrong, or its client left before the first byte)",
    labels: [...names, "outcome"],
  });
  const firstByte = metrics.histogram({
    name: "loraline_gateway_first_byte_seconds",
    help: "From asking the engine to the beginning of its answer",
    labels: names,
    buckets: seconds,
  });
  const duration = metrics.histogram({
    name: "loraline_gateway_answer_seconds",
    help: "From asking the engine to the end of its answer",
    labels: names,
    buckets: seconds,
  });
  const inFlight = metrics.gauge({
    name: "loraline_gateway_in_flight",
    help: "Requests that engines are answering",
    labels: names,
  });
  const tokens = metrics.counter({
    name: "loraline_gateway_tokens_total",
    help: "Tokens, as the engine counted them; estimated where an answer was broken off. kind: prompt, completion",
    labels: [...names, "kind"],
  });
  const limited = metrics.counter({
    name: "loraline_gateway_limited_total",
    help: "Requests refused with 429. limit: requests, tokens, concurrency",
    labels: ["limit"],
  });
  const retried = metrics.counter({ name: "loraline_gateway_retries_total", help: "Replicas that were passed over for the next" });
  let askWaiting = (): number => 0;
  const waiting = metrics.gauge({
    name: "loraline_gateway_waiting_turn",
    help: "Requests of tenants that have many under way, which wait because the gateway has no time left",
  });
  metrics.beforeScrape(() => waiting.set(askWaiting()));
  const left = metrics.counter({
    name: "loraline_gateway_models_over_cap_total",
    help: `Requests counted under "other", because ${cap} models have series of their own already`,
  });

  interface Place {
    labels: Record<(typeof names)[number], string>;
    metrics: ModelMetrics;
    usedAt: number;
    busy: number;
  }
  const places = new Map<string, Place>();

  const placeOf = (labels: Place["labels"]): Place => {
    const bound = {
      served: requests.labels({ ...labels, outcome: "served" }),
      failed: requests.labels({ ...labels, outcome: "failed" }),
      ignored: requests.labels({ ...labels, outcome: "ignored" }),
      inFlight: inFlight.labels(labels),
      prompt: tokens.labels({ ...labels, kind: "prompt" }),
      completion: tokens.labels({ ...labels, kind: "completion" }),
    };
    const place: Place = {
      labels,
      usedAt: now(),
      busy: 0,
      metrics: {
        begin() {
          place.busy += 1;
          place.usedAt = now();
          bound.inFlight.inc();
        },
        firstByte: (ms) => firstByte.observe({ labels, value: ms / 1000, exemplarLabels: exemplarOf() }),
        end(outcome, ms) {
          place.busy -= 1;
          bound.inFlight.dec();
          bound[outcome].inc();
          if (outcome === "served") duration.observe({ labels, value: ms / 1000, exemplarLabels: exemplarOf() });
        },
        unanswered() {
          place.usedAt = now();
          bound.failed.inc();
        },
        tokens(prompt, completion) {
          bound.prompt.inc(prompt);
          bound.completion.inc(completion);
        },
      },
    };
    return place;
  };
  const otherLabels = { tenant: "other", base: "other", adapter: "other", version: "other" };
  let other: Place | undefined;

  const forget = (key: string, { labels }: Place): void => {
    places.delete(key);
    for (const outcome of ["served", "failed", "ignored"]) requests.remove({ ...labels, outcome });
    for (const kind of ["prompt", "completion"]) tokens.remove({ ...labels, kind });
    firstByte.remove(labels);
    duration.remove(labels);
    inFlight.remove(labels);
  };
  /**
   * Removes the series of idle models; where there are none, that of the tenant with the most models which was not asked for longest, if it has
   * more than a few and this one has none. @returns whether there is room for another model now
   */
  const makeRoom = (tenant: string): boolean => {
    for (const [key, place] of places) if (place.busy === 0 && now() - place.usedAt >= idleAfterMs) forget(key, place);
    if (places.size < cap) return true;
    const byTenant = Map.groupBy(places, ([, { labels }]) => labels.tenant);
    const most = [...byTenant.values()].reduce((a, b) => (b.length > a.length ? b : a), []);
    if (byTenant.has(tenant) || most.length <= fewModels) return false;
    const unused = most.filter(([, { busy }]) => busy === 0).toSorted(([, a], [, b]) => a.usedAt - b.usedAt)[0];
    if (unused !== undefined) forget(...unused);
    return places.size < cap;
  };
  let triedAt = Number.NEGATIVE_INFINITY;

  const seriesOf = new Map<string, { inc(): void }>();
  const countOf = new Map<string, number>();
  const series = (labels: Record<(typeof answerLabels)[number], string>): { inc(): void } => {
    const key = Object.values(labels).join(" ");
    let found = seriesOf.get(key);
    if (found === undefined) {
      const { tenant, model } = labels;
      const count = countOf.get(tenant) ?? 0;
      if (count >= answerSeriesOfTenant && model !== "" && model !== "other") return series({ ...labels, model: "other" });
      if (seriesOf.size >= answerSeriesAtMost && tenant !== "other") return series({ ...labels, tenant: "other", model: "other" });
      found = answers.labels(labels);
      seriesOf.set(key, found);
      countOf.set(tenant, count + 1);
    }
    return found;
  };

  return {
    answered({ route, method, status, error, tenant, model, seconds: took, traceId }) {
      series({ route, method, code: String(status), error, tenant, model }).inc();
      answerSeconds.observe({ labels: { route, method }, value: took, exemplarLabels: exemplarOf(traceId) });
    },
    model({ tenant, base, adapter, version, engineModel }) {
      // All tenants use the same name of a base, so its key contains the tenant; a LoRA name belongs to one tenant.
      const key = adapter === null ? `${tenant} ${engineModel}` : engineModel;
      let place = places.get(key);
      if (place !== undefined) return place.metrics;
      if (places.size >= cap) {
        // Making room goes over all models, so it is not tried with each request.
        const mayTry = now() - triedAt > 10_000;
        if (mayTry) triedAt = now();
        if (!mayTry || !makeRoom(tenant)) {
          left.inc();
          other ??= placeOf(otherLabels);
          return other.metrics;
        }
      }
      place = placeOf({ tenant, base, adapter: adapter ?? "", version: version === null ? "" : String(version) });
      places.set(key, place);
      return place.metrics;
    },
    limited: (kind) => limited.inc({ limit: kind }),
    retried: () => retried.inc(),
    waitingForTurn(ask) {
      askWaiting = ask;
    },
    waitingForEngines(ask) {
      const gauge = metrics.gauge({
        name: "loraline_gateway_waiting_for_engine",
        help: "Requests that wait for an engine without a ready replica, which may be scaled to zero",
        labels: ["engine"],
      });
      metrics.beforeScrape(() => {
        gauge.reset();
        for (const [engine, count] of ask()) gauge.set({ engine }, count);
      });
    },
    engines(ask) {
      const problems = metrics.gauge({
        name: "loraline_engine_problem",
        help: "1: nothing new is made for this engine, and code says why, such as BASE_MISSING. Engines that are well have no series",
        labels: ["engine", "base", "code"],
      });
      const replicas = metrics.gauge({
        name: "loraline_engine_replicas",
        help: "Replicas of an engine as this gateway sees them. state: ready; unready (says that it is not); silent (its agent says nothing, or it cannot be reached)",
        labels: ["engine", "base", "state"],
      });
      const sleeping = metrics.gauge({
        name: "loraline_engine_asleep",
        help: "1: no replica is ready of an engine that may be scaled to zero, and no request has waited for it in vain",
        labels: ["engine", "base"],
      });
      metrics.beforeScrape(() => {
        problems.reset();
        replicas.reset();
        sleeping.reset();
        for (const { record, replicas: count, asleep } of ask()) {
          const { engine, problem } = record;
          const base = record.base.name;
          if (problem) problems.set({ engine, base, code: problem.code }, 1);
          if (record.wake) sleeping.set({ engine, base }, asleep ? 1 : 0);
          for (const state of ["ready", "unready", "silent"] as const) replicas.set({ engine, base, state }, count[state]);
        }
      });
    },
  };
}
