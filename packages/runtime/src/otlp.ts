/** Logs and metrics by OTLP over HTTP, beside stdout and /metrics, for collectors that are sent things. */
import { randomUUID } from "node:crypto";
import { type HrTime, isSpanContextValid, ROOT_CONTEXT, trace, TraceFlags, ValueType } from "@opentelemetry/api";
import { OTLPLogExporter } from "@opentelemetry/exporter-logs-otlp-http";
import { OTLPMetricExporter } from "@opentelemetry/exporter-metrics-otlp-http";
import { millisToHrTime } from "@opentelemetry/core";
import { resourceFromAttributes } from "@opentelemetry/resources";
import { BatchLogRecordProcessor, LoggerProvider } from "@opentelemetry/sdk-logs";
import {
  AggregationTemporality,
  DataPointType,
  MeterProvider,
  type MetricData,
  type MetricProducer,
  PeriodicExportingMetricReader,
} from "@opentelemetry/sdk-metrics";
import type { DestinationStream } from "pino";
import type { Metrics } from "./metrics.ts";

interface OtlpOptions {
  service: string;
  /** Base URL such as `http://collector:4318`. */
  endpoint: string;
}

interface OtlpLogs extends AsyncDisposable {
  /** Takes the lines of `createLog`. */
  readonly lines: DestinationStream;
}

/** Which process it is, as OpenTelemetry wants it told: several of a service send series of the same names. */
const instance = randomUUID();
const resourceOf = (service: string) =>
  resourceFromAttributes({ "service.name": service, "service.namespace": "loraline", "service.instance.id": instance });
const urlOf = (endpoint: string, path: string): string => `${endpoint.replace(/\/+$/, "")}/v1/${path}`;

/** Disposing sends what is left. */
export function createOtlpLogs({ service, endpoint }: OtlpOptions): OtlpLogs {
  const exporter = new OTLPLogExporter({ url: urlOf(endpoint, "logs") });
  const provider = new LoggerProvider({ resource: resourceOf(service), processors: [new BatchLogRecordProcessor({ exporter })] });
  const logger = provider.getLogger("loraline");
  return {
    lines: {
      write(line) {
        const {
          level: _level,
          time,
          msg,
          severity_text,
          severity_number,
          trace_id,
          span_id,
          service: of,
          ...attributes
        } = JSON.parse(line) as {
          time: number;
          msg?: string;
          severity_text: string;
          severity_number: number;
          trace_id?: string;
          span_id?: string;
        } & Record<string, never>;
        const span = { traceId: trace_id ?? "", spanId: span_id ?? "", traceFlags: TraceFlags.SAMPLED };
        logger.emit({
          timestamp: time,
          severityText: severity_text,
          severityNumber: severity_number,
          body: msg ?? "",
          // One process may be several services, as on one machine.
          attributes: {
            ...attributes,
            ...(of === service ? {} : { service: of }),
            ...(isSpanContextValid(span) || trace_id === undefined ? {} : { trace_id }),
          },
          ...(isSpanContextValid(span) ? { context: trace.setSpanContext(ROOT_CONTEXT, span) } : {}),
        });
      },
    },
    [Symbol.asyncDispose]: () => provider.shutdown(),
  };
}

/** Sends the metrics of `/metrics` twice a minute. Disposing sends them a last time. */
export function sendMetrics({
  service,
  endpoint,
  metrics,
  everyMs = 30_000,
}: OtlpOptions & { metrics: Metrics; everyMs?: number }): AsyncDisposable {
  const startTime = millisToHrTime(Date.now());
  const resource = resourceOf(service);
  const producer: MetricProducer = {
    async collect() {
      const endTime = millisToHrTime(Date.now());
      const found = await metrics.read();
      const scopeMetrics = [{ scope: { name: "loraline" }, metrics: found.map((one) => metricOf(one, startTime, endTime)) }];
      return { resourceMetrics: { resource, scopeMetrics }, errors: [] };
    },
  };
  const exporter = new OTLPMetricExporter({ url: urlOf(endpoint, "metrics") });
  const reader = new PeriodicExportingMetricReader({
    exporter,
    exportIntervalMillis: everyMs,
    exportTimeoutMillis: Math.min(10_000, everyMs),
    metricProducers: [producer],
  });
  const provider = new MeterProvider({ resource, readers: [reader] });
  return { [Symbol.asyncDispose]: () => provider.shutdown() };
}

type Read = Awaited<ReturnType<Metrics["read"]>>[number];
type Labels = Record<string, string | number>;

function metricOf({ name: given, help, type, values }: Read, startTime: HrTime, endTime: HrTime): MetricData {
  // The suffix is Prometheus', which puts it back.
  const name = given.replace(/_total$/, "");
  const common = {
    descriptor: { name, description: help, unit: "", valueType: ValueType.DOUBLE },
    aggregationTemporality: AggregationTemporality.CUMULATIVE,
  };
  const at = { startTime, endTime };
  if (String(type) === "histogram") return { ...common, dataPointType: DataPointType.HISTOGRAM, dataPoints: histogramsOf(values, at) };
  const dataPoints = values.map(({ labels, value }) => ({ ...at, attributes: labels as Labels, value }));
  if (String(type) === "counter") return { ...common, dataPointType: DataPointType.SUM, isMonotonic: true, dataPoints };
  return { ...common, dataPointType: DataPointType.GAUGE, dataPoints };
}

/** Of Prometheus' cumulative buckets, those of one series each. */
function histogramsOf(values: Read["values"], at: { startTime: HrTime; endTime: HrTime }) {
  const series = Map.groupBy(values, ({ labels: { le: _le, ...labels } }) => JSON.stringify(labels));
  return [...series].map(([labels, parts]) => {
    const valueOf = (suffix: string): number => parts.find(({ metricName }) => metricName?.endsWith(suffix))?.value ?? 0;
    const buckets = parts.filter(({ labels: { le } }) => le !== undefined);
    const counts = buckets.map(({ value }, index) => value - (buckets[index - 1]?.value ?? 0));
    const boundaries = buckets.map(({ labels: { le } }) => Number(le)).filter(Number.isFinite);
    const value = { buckets: { boundaries, counts }, sum: valueOf("_sum"), count: valueOf("_count") };
    return { ...at, attributes: JSON.parse(labels) as Labels, value };
  });
}
