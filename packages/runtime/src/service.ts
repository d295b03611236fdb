/** Frame of a service process: settings, log, telemetry, signals, orderly end. */
import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import { loadEnv } from "./env.ts";
import { createHealth, type Health } from "./health.ts";
import { createLog, type Log } from "./log.ts";
import { type Metrics, serveMetrics } from "./metrics.ts";
import { createTelemetry, openCollector, type SpanSink, type Telemetry } from "./telemetry.ts";

export interface ServiceContext<Env> {
  env: Env;
  log: Log;
  telemetry: Telemetry;
  health: Health;
  /** Says where spans are kept with LORALINE_TRACES=nats. Until it is called they are held in memory. */
  keepSpans(sink: SpanSink): void;
  /** Aborted when the process is to end; for a start that still waits for something. */
  stopping: AbortSignal;
}

/** The parts of `process` that a service's `main.ts` hands over; only `main.ts` touches `process`. */
interface HostProcess {
  env: Record<string, string | undefined>;
  exitCode?: number | string | null | undefined;
  exit(code?: number): never;
  once(signal: "SIGTERM" | "SIGINT", listener: () => void): unknown;
}

interface ServiceOptions<Schema extends z.ZodType> {
  service: string;
  env: Schema;
  host: HostProcess;
  /** Hard end after a signal; keep it below the pod's grace period. */
  shutdownMs?: number;
  /** May wait for servers that are not there yet, and says so by `health`. */
  start(context: ServiceContext<z.output<Schema>>): Promise<AsyncDisposable>;
}

/** A start ends soon after it was told to, unless it hangs. */
const startEndsMs = 10_000;

/** What every service takes from its environment besides its own settings. */
const commonEnv = z.object({
  HEALTH_PORT: z.coerce.number().int().min(0).max(65_535).optional().describe("Where /livez and /readyz are answered; absent: nowhere."),
  METRICS_PORT: z.coerce
    .number()
    .int()
    .min(0)
    .max(65_535)
    .optional()
    .describe("Where Prometheus finds /metrics, without keys; absent: nowhere."),
  METRICS_HOST: z.string().default("0.0.0.0"),
  LORALINE_TRACES: z.enum(["nats"]).optional().describe("nats: spans are kept in the stream SPANS, for `loraline trace`."),
});

/**
 * Starts a service and keeps it until SIGTERM or SIGINT. A failing start says why on one line and exits with 1.
 * JetStream redelivers what was not acknowledged, so the hard deadline loses nothing.
 */
export async function runService<Schema extends z.ZodType>(options: ServiceOptions<Schema>): Promise<void> {
  const { service, host, shutdownMs = 20_000 } = options;
  const collector = await openCollector({ service, endpoint: host.env.OTEL_EXPORTER_OTLP_ENDPOINT });
  const log = createLog({ service, level: host.env.LOG_LEVEL ?? "info", also: collector?.lines });
  const stopping = new AbortController();
  let starting: Promise<AsyncDisposable> | undefined;
  let telemetry: Telemetry | undefined;
  const stop = async (): Promise<void> => {
    log.info("stopping");
    setTimeout(() => {
      log.error({ shutdownMs }, "did not stop in time");
      host.exit(1);
    }, shutdownMs).unref();
    stopping.abort();
    // What a start has made so far, such as a lease, is given back as well; one that waits for something else is not waited for.
    const running = await Promise.race([starting?.catch(() => undefined), sleep(startEndsMs, undefined, { ref: false })]);
    await running?.[Symbol.asyncDispose]();
    await Promise.allSettled([telemetry?.[Symbol.asyncDispose](), collector?.[Symbol.asyncDispose]()]);
    host.exit(0);
  };
  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    host.once(signal, () => {
      stop().catch((error: unknown) => {
        log.error({ err: error }, "stopping failed");
        host.exit(1);
      });
    });
  }
  try {
    const {
      HEALTH_PORT: port,
      LORALINE_TRACES: traces,
      METRICS_PORT: metricsPort,
      METRICS_HOST: metricsHost,
    } = loadEnv(commonEnv, host.env);
    const keeping = Promise.withResolvers<SpanSink>();
    const env = loadEnv(options.env, host.env);
    telemetry = createTelemetry({
      service,
      spansDir: host.env.LORALINE_SPANS_DIR || undefined, // empty is unset, as for `loadEnv`
      otlpEndpoint: host.env.OTEL_EXPORTER_OTLP_ENDPOINT,
      keep: traces === undefined ? undefined : async (traceId, spans) => (await keeping.promise)(traceId, spans),
    });
    // Answers until the very end: a probe that fails while the service still drains would have it killed.
    const health = await createHealth({ port });
    tellReadiness(telemetry.metrics, service, health);
    collector?.sendMetrics(telemetry.metrics);
    if (metricsPort !== undefined) {
      const { url } = await serveMetrics(telemetry.metrics, { host: metricsHost, port: metricsPort });
      log.info({ metricsUrl: url }, "metrics are served");
    }
    starting = options.start({ env, log, telemetry, health, keepSpans: keeping.resolve, stopping: stopping.signal });
    await starting;
    if (stopping.signal.aborted) return;
    health.started();
    log.info("ready");
  } catch (error) {
    if (stopping.signal.aborted) return;
    log.fatal({ err: error }, error instanceof Error ? error.message : String(error));
    // A collector is told why, unless it hangs.
    if (collector !== undefined) await Promise.race([collector[Symbol.asyncDispose](), sleep(2000)]).catch(() => undefined);
    host.exit(1);
  }
}

function tellReadiness(metrics: Metrics, service: string, health: Pick<Health, "problems">): void {
  const ready = metrics.gauge({
    name: "loraline_ready",
    help: "1: the service works; 0: /readyz says what is missing",
    labels: ["component"],
  });
  const problem = metrics.gauge({
    name: "loraline_problem",
    help: "1: this keeps the service from working. check: service (it starts), nats, objects, kubernetes, engine",
    labels: ["component", "check"],
  });
  metrics.beforeScrape(() => {
    const found = health.problems();
    ready.set({ component: service }, found.length === 0 ? 1 : 0);
    problem.reset();
    for (const one of found) problem.set({ component: service, check: one.split(":", 1)[0] ?? "" }, 1);
  });
}
