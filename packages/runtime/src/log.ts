/** JSON logs that carry the trace they belong to. */
import { isSpanContextValid, trace } from "@opentelemetry/api";
import { type DestinationStream, type Logger, pino } from "pino";

export type Log = Logger;

interface LogOptions {
  service: string;
  level?: string;
  destination?: DestinationStream;
}

/** Every line has `service`, and `trace_id` and `span_id` when a span is active. Bind `runId` with `log.child({ runId })`. */
export function createLog({ service, level = "info", destination }: LogOptions): Log {
  const options = {
    level,
    base: { service },
    mixin() {
      const context = trace.getActiveSpan()?.spanContext();
      return context !== undefined && isSpanContextValid(context) ? { trace_id: context.traceId, span_id: context.spanId } : {};
    },
  };
  return destination === undefined ? pino(options) : pino(options, destination);
}
