/** JSON logs that carry the trace they belong to. */
import { isSpanContextValid, trace } from "@opentelemetry/api";
import { type DestinationStream, type Logger, multistream, pino, stdTimeFunctions } from "pino";

export type Log = Logger;

interface LogOptions {
  service: string;
  level?: string;
  /** Default: stdout. */
  destination?: DestinationStream;
  /** Gets every line, too. */
  also?: DestinationStream | undefined;
}

/** OpenTelemetry's number of a severity, by pino's level. */
const severities: Readonly<Record<string, number>> = { trace: 1, debug: 5, info: 9, warn: 13, error: 17, fatal: 21 };

/**
 * Every line has `service`, `severity_text` and `severity_number` as OpenTelemetry names them, beside pino's `level`, and `trace_id` and `span_id` when
 * a span is active. Bind `runId` with `log.child({ runId })`.
 */
export function createLog({ service, level = "info", destination, also }: LogOptions): Log {
  const options = {
    level,
    base: { service },
    timestamp: stdTimeFunctions.epochTime,
    formatters: {
      level: (label: string, number: number) => ({
        level: number,
        severity_text: label.toUpperCase(),
        severity_number: severities[label] ?? 0,
      }),
    },
    mixin() {
      const context = trace.getActiveSpan()?.spanContext();
      return context !== undefined && isSpanContextValid(context) ? { trace_id: context.traceId, span_id: context.spanId } : {};
    },
  };
  if (also !== undefined) {
    // The log's own level decides.
    const all = [destination ?? pino.destination(1), also].map((stream) => ({ stream, level: "trace" as const }));
    return pino(options, multistream(all));
  }
  return destination === undefined ? pino(options) : pino(options, destination);
}
