/**
 * Prometheus metrics of all tenants, for the operator. They are on a separate port without keys, because a tenant's admin must not see
 * other tenants; keep the port inside the cluster.
 */
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import type { EngineRecord } from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime";
import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from "prom-client";

/** How many models have their own series; further models are counted as `other`. */
const modelsAtMost = 200;
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
}

export interface Metrics {
  model(model: MeasuredModel): ModelMetrics;
  limited(kind: "requests" | "tokens" | "concurrency"): void;
  retried(): void;
  /** Tells how many requests wait for their tenant's turn. */
  waitingForTurn(ask: () => number): void;
  /** Tells which engines there are. */
  engines(ask: () => Iterable<EngineRecord>): void;
  text(): Promise<string>;
}

const names = ["tenant", "base", "adapter", "version"] as const;
const seconds = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];

/** Makes a registry of its own for each gateway, so that one process may have several gateways. */
export function createMetrics({ cap = modelsAtMost, now = () => performance.now() }: { cap?: number; now?: () => number } = {}): Metrics {
  const registry = new Registry();
  const registers = [registry];
  collectDefaultMetrics({ register: registry });
  const requests = new Counter({
    name: "loraline_gateway_requests_total",
    help: "Requests to models that are over. outcome: served; failed (5xx, or broken off by the engine); ignored (refused by the engine as wrong, or its client left before the first byte)",
    labelNames: [...names, "outcome"],
    registers,
  });
  const firstByte = new Histogram({
    name: "loraline_gateway_first_byte_seconds",
    help: "From asking the engine to the beginning of its answer",
    labelNames: names,
    buckets: seconds,
    registers,
  });
  const duration = new Histogram({
    name: "loraline_gateway_answer_seconds",
    help: "From asking the engine to the end of its answer",
    labelNames: names,
    buckets: seconds,
    registers,
  });
  const inFlight = new Gauge({
    name: "loraline_gateway_in_flight",
    help: "Requests that engines are answering",
    labelNames: names,
    registers,
  });
  const tokens = new Counter({
    name: "loraline_gateway_tokens_total",
    help: "Tokens, as the engine counted them; estimated where an answer was broken off. kind: prompt, completion",
    labelNames: [...names, "kind"],
    registers,
  });
  const limited = new Counter({
    name: "loraline_gateway_limited_total",
    help: "Requests refused with 429. limit: requests, tokens, concurrency",
    labelNames: ["limit"],
    registers,
  });
  const retried = new Counter({ name: "loraline_gateway_retries_total", help: "Replicas that were passed over for the next", registers });
  let askWaiting = (): number => 0;
  new Gauge({
    name: "loraline_gateway_waiting_turn",
    help: "Requests of tenants that have many under way, which wait because the gateway has no time left",
    registers,
    collect() {
      this.set(askWaiting());
    },
  });
  const left = new Counter({
    name: "loraline_gateway_models_over_cap_total",
    help: `Requests counted under "other", because ${cap} models have series of their own already`,
    registers,
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
      firstByte: firstByte.labels(labels),
      duration: duration.labels(labels),
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
        firstByte: (ms) => bound.firstByte.observe(ms / 1000),
        end(outcome, ms) {
          place.busy -= 1;
          bound.inFlight.dec();
          bound[outcome].inc();
          if (outcome === "served") bound.duration.observe(ms / 1000);
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

  /** Removes the series of idle models. @returns whether there is room for another model now */
  const makeRoom = (): boolean => {
    for (const [key, { labels, usedAt, busy }] of places) {
      if (busy > 0 || now() - usedAt < idleAfterMs) continue;
      places.delete(key);
      for (const outcome of ["served", "failed", "ignored"]) requests.remove({ ...labels, outcome });
      for (const kind of ["prompt", "completion"]) tokens.remove({ ...labels, kind });
      firstByte.remove(labels);
      duration.remove(labels);
      inFlight.remove(labels);
    }
    return places.size < cap;
  };
  let triedAt = Number.NEGATIVE_INFINITY;

  return {
    model({ tenant, base, adapter, version, engineModel }) {
      // All tenants use the same name of a base, so its key contains the tenant; a LoRA name belongs to one tenant.
      const key = adapter === null ? `${tenant} ${engineModel}` : engineModel;
      let place = places.get(key);
      if (place !== undefined) return place.metrics;
      if (places.size >= cap) {
        // Making room goes over all models, so it is not tried with each request.
        const mayTry = now() - triedAt > 10_000;
        if (mayTry) triedAt = now();
        if (!mayTry || !makeRoom()) {
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
    engines(ask) {
      new Gauge({
        name: "loraline_engine_problem",
        help: "1: nothing new is made for this engine, and code says why, such as BASE_MISSING. Engines that are well have no series",
        labelNames: ["engine", "base", "code"],
        registers,
        collect() {
          this.reset();
          for (const { engine, base, problem } of ask()) if (problem) this.labels({ engine, base: base.name, code: problem.code }).set(1);
        },
      });
    },
    text: () => registry.metrics(),
  };
}

interface MetricsServer extends AsyncDisposable {
  readonly url: string;
}

/** `GET /metrics` on its own address. @throws PermanentError PORT_TAKEN, ADDRESS_UNUSABLE. */
export async function serveMetrics(metrics: Metrics, { host, port }: { host: string; port: number }): Promise<MetricsServer> {
  const server = createServer((request, response) => {
    if (request.method !== "GET" || request.url?.split("?", 1)[0] !== "/metrics") {
      response.writeHead(404).end();
      return;
    }
    metrics.text().then(
      (text) => response.writeHead(200, { "content-type": "text/plain; version=0.0.4; charset=utf-8" }).end(text),
      (error: unknown) => response.writeHead(500).end(String(error)),
    );
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", (error: NodeJS.ErrnoException) => {
      const taken = error.code === "EADDRINUSE";
      const message = taken ? `port ${port} of ${host} is taken by another process` : `cannot listen on ${host}:${port}: ${error.message}`;
      reject(new PermanentError(taken ? "PORT_TAKEN" : "ADDRESS_UNUSABLE", `metrics: ${message}.`, { param: "metricsPort", cause: error }));
    });
    server.listen(port, host, resolve);
  });
  const { address, family, port: bound } = server.address() as AddressInfo;
  return {
    url: `http://${family === "IPv6" ? `[${address}]` : address}:${bound}/metrics`,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => {
        server.close(resolve);
      });
    },
  };
}
