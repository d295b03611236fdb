/**
 * Traces, and the metrics beside them. One provider per service, so that the local line, which runs all of them in one process, still names each.
 * Spans go to OTLP when an endpoint is set, to files below `spansDir` when that is set, and to `keep`; all may be on.
 */
import { appendFile, mkdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import {
  type Attributes,
  type Context,
  context,
  type Link,
  ROOT_CONTEXT,
  type Span,
  SpanKind,
  SpanStatusCode,
  trace,
  type TracerProvider,
} from "@opentelemetry/api";
import { AsyncLocalStorageContextManager } from "@opentelemetry/context-async-hooks";
import { type ExportResult, ExportResultCode, hrTimeToMilliseconds, W3CTraceContextPropagator } from "@opentelemetry/core";
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-http";
import { resourceFromAttributes } from "@opentelemetry/resources";
import {
  BasicTracerProvider,
  BatchSpanProcessor,
  type ReadableSpan,
  type SpanExporter,
  type SpanProcessor,
} from "@opentelemetry/sdk-trace-base";
import type { DestinationStream } from "pino";
import { createMetrics, type Metrics } from "./metrics.ts";

/** Characters of an attribute, and of an error's message: they may be what a tenant sent, and spans of all tenants share their room. */
const mostCharacters = 4096;

const propagator = new W3CTraceContextPropagator();
let contextManagerInstalled = false;

interface TelemetryOptions {
  service: string;
  /** Directory for `<traceId>.jsonl`. */
  spansDir?: string | undefined;
  /** Base URL such as `http://collector:4318`. */
  otlpEndpoint?: string | undefined;
  /** Takes the spans of one trace, some at a time. */
  keep?: SpanSink | undefined;
  /** Default: new ones. Services of one process share theirs. */
  metrics?: Metrics;
}

export type SpanSink = (traceId: string, spans: readonly StoredSpan[]) => Promise<void>;

interface SpanOptions {
  kind?: "internal" | "server" | "client" | "producer" | "consumer";
  attributes?: Attributes;
  /** W3C traceparent to continue; absent: the active span, or a new trace. `null`: a new trace. */
  parent?: string | null | undefined;
  /** W3C traceparents of work in other traces that this joins. */
  links?: readonly string[];
  /** When it began, in milliseconds since the epoch; absent: now. */
  startMs?: number;
}

export interface Telemetry {
  /** What the process shows to Prometheus. */
  readonly metrics: Metrics;
  /** Runs `work` inside a span; an error marks the span and is thrown on. */
  span<T>(name: string, options: SpanOptions, work: (span: Span) => Promise<T>): Promise<T>;
  /** Starts a span that the caller ends itself. */
  startSpan(name: string, options: SpanOptions): Span;
  /** Records something that already happened. Times in milliseconds since the epoch. */
  record(name: string, options: SpanOptions & { startMs: number; endMs: number; error?: string }): void;
  /** W3C traceparent of the active span; undefined outside of one. */
  traceparent(): string | undefined;
  flush(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

const kinds = {
  internal: SpanKind.INTERNAL,
  server: SpanKind.SERVER,
  client: SpanKind.CLIENT,
  producer: SpanKind.PRODUCER,
  consumer: SpanKind.CONSUMER,
} as const;

const fromTraceparent = (traceparent: string): Context =>
  propagator.extract(ROOT_CONTEXT, { traceparent }, { get: (carrier, key) => (carrier as Record<string, string>)[key], keys: Object.keys });

/** W3C traceparent of a span. */
export function traceparentOf(span: Span): string {
  const { traceId, spanId, traceFlags } = span.spanContext();
  return `00-${traceId}-${spanId}-${traceFlags.toString(16).padStart(2, "0")}`;
}

/** Trace id of a traceparent; undefined when it is none. */
export const traceIdOf = (traceparent: string | null | undefined): string | undefined =>
  /^00-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}$/.exec(traceparent ?? "")?.[1];

export function createTelemetry({ service, spansDir, otlpEndpoint, keep, metrics = createMetrics() }: TelemetryOptions): Telemetry {
  if (!contextManagerInstalled) {
    // The one global of the SDK that cannot be avoided: who the active span is, across awaits.
    context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
    contextManagerInstalled = true;
  }
  const spanProcessors: SpanProcessor[] = [];
  for (const sink of [...(spansDir === undefined ? [] : [toFiles(spansDir)]), ...(keep === undefined ? [] : [keep])]) {
    spanProcessors.push(new BatchSpanProcessor(new SinkExporter(service, sink), { scheduledDelayMillis: 200 }));
  }
  if (otlpEndpoint !== undefined && otlpEndpoint !== "") {
    spanProcessors.push(new BatchSpanProcessor(new OTLPTraceExporter({ url: `${otlpEndpoint.replace(/\/+$/, "")}/v1/traces` })));
  }
  const provider = new BasicTracerProvider({
    resource: resourceFromAttributes({ "service.name": service, "service.namespace": "loraline" }),
    spanProcessors,
    spanLimits: { attributeValueLengthLimit: mostCharacters },
  });
  const tracer = (provider as TracerProvider).getTracer("loraline");

  const start = (name: string, options: SpanOptions): Span => {
    const parent =
      options.parent === undefined ? context.active() : options.parent === null ? ROOT_CONTEXT : fromTraceparent(options.parent);
    const links: Link[] = (options.links ?? []).flatMap((link) => {
      const linked = trace.getSpanContext(fromTraceparent(link));
      return linked === undefined ? [] : [{ context: linked }];
    });
    return tracer.startSpan(
      name,
      {
        kind: kinds[options.kind ?? "internal"],
        links,
        ...(options.attributes === undefined ? {} : { attributes: options.attributes }),
        ...(options.startMs === undefined ? {} : { startTime: options.startMs }),
      },
      parent,
    );
  };

  return {
    metrics,
    startSpan: start,
    async span(name, options, work) {
      const span = start(name, options);
      try {
        return await context.with(trace.setSpan(context.active(), span), () => work(span));
      } catch (error) {
        span.setStatus({ code: SpanStatusCode.ERROR, message: cut(error instanceof Error ? error.message : String(error)) });
        throw error;
      } finally {
        span.end();
      }
    },
    record(name, { endMs, error, ...options }) {
      const span = start(name, options);
      if (error !== undefined) span.setStatus({ code: SpanStatusCode.ERROR, message: cut(error) });
      span.end(endMs);
    },
    traceparent() {
      const span = trace.getActiveSpan();
      return span === undefined ? undefined : traceparentOf(span);
    },
    flush: () => provider.forceFlush(),
    [Symbol.asyncDispose]: () => provider.shutdown(),
  };
}

const cut = (message: string): string => (message.length > mostCharacters ? `${message.slice(0, mostCharacters)}…` : message);

/** A span as `readSpans` returns it; the shape of contracts' `SpanView`. */
export interface StoredSpan {
  traceId: string;
  spanId: string;
  parentSpanId: string | null;
  service: string;
  name: string;
  startMs: number;
  durationMs: number;
  status: "ok" | "error";
  attributes: Record<string, unknown>;
  links: { traceId: string; spanId: string }[];
}

const toFiles =
  (dir: string): SpanSink =>
  async (traceId, spans) => {
    await mkdir(dir, { recursive: true });
    await appendFile(join(dir, `${traceId}.jsonl`), spans.map((span) => `${JSON.stringify(span)}\n`).join(""));
  };

class SinkExporter implements SpanExporter {
  readonly #service: string;
  readonly #sink: SpanSink;
  constructor(service: string, sink: SpanSink) {
    this.#service = service;
    this.#sink = sink;
  }
  export(spans: ReadableSpan[], done: (result: ExportResult) => void): void {
    this.#write(spans).then(
      () => done({ code: ExportResultCode.SUCCESS }),
      (error: Error) => done({ code: ExportResultCode.FAILED, error }),
    );
  }
  async #write(spans: ReadableSpan[]): Promise<void> {
    for (const [traceId, group] of Map.groupBy(spans, (span) => span.spanContext().traceId)) {
      await this.#sink(
        traceId,
        group.map((span) => this.#stored(span)),
      );
    }
  }
  #stored(span: ReadableSpan): StoredSpan {
    const startMs = hrTimeToMilliseconds(span.startTime);
    return {
      traceId: span.spanContext().traceId,
      spanId: span.spanContext().spanId,
      parentSpanId: span.parentSpanContext?.spanId ?? null,
      service: this.#service,
      name: span.name,
      startMs,
      durationMs: hrTimeToMilliseconds(span.endTime) - startMs,
      status: span.status.code === SpanStatusCode.ERROR ? "error" : "ok",
      attributes: { ...span.attributes, ...(span.status.message === undefined ? {} : { "error.message": span.status.message }) },
      links: span.links.map((link) => ({ traceId: link.context.traceId, spanId: link.context.spanId })),
    };
  }
  async shutdown(): Promise<void> {}
  async forceFlush(): Promise<void> {}
}

/** Spans of one trace that were kept below `spansDir`, oldest first; empty when there are none. */
export async function readSpans(spansDir: string, traceId: string): Promise<StoredSpan[]> {
  if (!/^[0-9a-f]{32}$/.test(traceId)) return [];
  const text = await readFile(join(spansDir, `${traceId}.jsonl`), "utf8").catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return "";
    throw error;
  });
  const spans = text.split("\n").flatMap((line) => {
    try {
      return line === "" ? [] : [JSON.parse(line) as StoredSpan];
    } catch {
      return []; // the last line of a process that was killed while writing it
    }
  });
  return spans.sort((a, b) => a.startMs - b.startMs);
}

interface Collector extends AsyncDisposable {
  /** Takes the lines of `createLog`. */
  readonly lines: DestinationStream;
  /** Sends the metrics of `/metrics` from now on. */
  sendMetrics(metrics: Metrics): void;
}

/** Sends logs and metrics to a collector, where there is one. Disposing sends what is left. Its libraries are loaded only then: they take a while. */
export async function openCollector({
  service,
  endpoint,
}: {
  service: string;
  /** Base URL such as `http://collector:4318`. Absent or empty: there is none. */
  endpoint: string | undefined;
}): Promise<Collector | undefined> {
  if (endpoint === undefined || endpoint === "") return undefined;
  const { createOtlpLogs, sendMetrics } = await import("./otlp.ts");
  const logs = createOtlpLogs({ service, endpoint });
  const sending: AsyncDisposable[] = [];
  return {
    lines: logs.lines,
    sendMetrics: (metrics) => void sending.push(sendMetrics({ service, endpoint, metrics })),
    async [Symbol.asyncDispose]() {
      await Promise.allSettled([...sending, logs].map((one) => one[Symbol.asyncDispose]()));
    },
  };
}
