/**
 * Metrics of a process for Prometheus, which has no keys and shows all tenants: its port stays inside the cluster. Services of one process
 * share one `Metrics`, so whoever defines a metric a second time gets the one that is there.
 */
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { isSpanContextValid, trace } from "@opentelemetry/api";
import {
  collectDefaultMetrics,
  Counter,
  Gauge,
  Histogram,
  type Metric,
  type MetricObjectWithValues,
  type MetricValueWithName,
  Registry,
} from "prom-client";
import { PermanentError } from "./errors.ts";

/** `help` is what Prometheus shows; units stand in the name. */
interface Definition<Label extends string> {
  name: string;
  help: string;
  labels?: readonly Label[];
}

export interface Metrics {
  /** Its name ends in `_total`. */
  counter<Label extends string = never>(definition: Definition<Label>): Counter<Label>;
  gauge<Label extends string = never>(definition: Definition<Label>): Gauge<Label>;
  /** @param definition.buckets - upper bounds, rising, in the unit of the name. */
  histogram<Label extends string = never>(definition: Definition<Label> & { buckets: readonly number[] }): Histogram<Label>;
  /** Called before each scrape, to set gauges to what is now. A failure is counted, and the other metrics are answered. */
  beforeScrape(update: () => void | Promise<void>): Disposable;
  /** What `text` says, as data; histograms with Prometheus' cumulative buckets. */
  read(): Promise<MetricObjectWithValues<MetricValueWithName<string>>[]>;
  /** In OpenMetrics' format, with exemplars. */
  text(): Promise<string>;
  readonly registry: Registry<typeof Registry.OPENMETRICS_CONTENT_TYPE>;
}

export function createMetrics(): Metrics {
  const registry = new Registry<typeof Registry.OPENMETRICS_CONTENT_TYPE>();
  registry.setContentType(Registry.OPENMETRICS_CONTENT_TYPE);
  const known = new Map<string, Metric>();
  const once = <M extends Metric>(name: string, make: () => M): M => {
    const found = (known.get(name) as M | undefined) ?? make();
    known.set(name, found);
    return found;
  };
  collectDefaultMetrics({ register: registry });
  const updates = new Set<() => void | Promise<void>>();
  const failed = new Counter({
    name: "loraline_scrape_failures_total",
    help: "Parts of a scrape that could not be brought up to date; their gauges show what was before",
    registers: [registry],
  });
  const bringUpToDate = async (): Promise<void> => {
    for (const update of updates) {
      try {
        await update();
      } catch {
        failed.inc();
      }
    }
  };
  return {
    registry,
    counter: ({ name, help, labels = [] }) => once(name, () => new Counter({ name, help, labelNames: [...labels], registers: [registry] })),
    gauge: ({ name, help, labels = [] }) => once(name, () => new Gauge({ name, help, labelNames: [...labels], registers: [registry] })),
    histogram: ({ name, help, labels = [], buckets }) =>
      once(
        name,
        () => new Histogram({ name, help, labelNames: [...labels], buckets: [...buckets], enableExemplars: true, registers: [registry] }),
      ),
    beforeScrape(update) {
      updates.add(update);
      return { [Symbol.dispose]: () => void updates.delete(update) };
    },
    async read() {
      await bringUpToDate();
      return registry.getMetricsAsJSON();
    },
    async text() {
      await bringUpToDate();
      return registry.metrics();
    },
  };
}

/** The label of an exemplar that leads to a trace; none outside of a trace. @param traceId - default: of the active span. */
export function exemplarOf(traceId: string | undefined = activeTraceId()): Record<string, string> {
  return traceId === undefined ? {} : { trace_id: traceId };
}
function activeTraceId(): string | undefined {
  const context = trace.getActiveSpan()?.spanContext();
  return context !== undefined && isSpanContextValid(context) ? context.traceId : undefined;
}

interface MetricsServer extends AsyncDisposable {
  readonly url: string;
}

/** `GET /metrics` on its own address. @throws PermanentError PORT_TAKEN, ADDRESS_UNUSABLE. */
export async function serveMetrics(
  metrics: Pick<Metrics, "text" | "registry">,
  { host, port }: { host: string; port: number },
): Promise<MetricsServer> {
  const server = createServer((request, response) => {
    if (request.method !== "GET" || request.url?.split("?", 1)[0] !== "/metrics") {
      response.writeHead(404).end();
      return;
    }
    metrics.text().then(
      (text) => response.writeHead(200, { "content-type": metrics.registry.contentType }).end(text),
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
