/** Traces in the stream SPANS, so that every gateway can show them without a collector. */
import { spansSubject, streams } from "@loraline/contracts";
import type { SpanSink, StoredSpan } from "@loraline/runtime";
import { jetstream, jetstreamManager } from "@nats-io/jetstream";
import type { NatsConnection } from "@nats-io/transport-node";

/** Below NATS' default limit of 1 MiB a message, with attributes of a few KiB each. */
const spansPerMessage = 100;

/** A message may hold a hundred spans, of some KiB each at most. */
const messagesAtOnce = 64;

/** Where a service's telemetry keeps its spans. */
export const spanSink = (nc: NatsConnection): SpanSink => {
  const js = jetstream(nc);
  return async (traceId, spans) => {
    for (let from = 0; from < spans.length; from += spansPerMessage) {
      await js.publish(spansSubject(traceId), JSON.stringify(spans.slice(from, from + spansPerMessage)));
    }
  };
};

/** Of one trace. A run has some hundreds; whoever sends the same `traceparent` with each request makes a trace of any size. */
export const mostSpansRead = 5000;

/** Spans of one trace that are still kept, oldest first; of more than `mostSpansRead` those that came first. */
export async function readKeptSpans(nc: NatsConnection, traceId: string): Promise<StoredSpan[]> {
  if (!/^[0-9a-f]{32}$/.test(traceId)) return [];
  const { direct } = await jetstreamManager(nc);
  const spans: StoredSpan[] = [];
  try {
    for (let seq = 1; ;) {
      const some = await Array.fromAsync(
        await direct.getBatch(streams.SPANS.name, { seq, next_by_subj: spansSubject(traceId), batch: messagesAtOnce }),
      );
      for (const message of some) spans.push(...message.json<StoredSpan[]>());
      const last = some.at(-1);
      if (last === undefined || some.length < messagesAtOnce || spans.length >= mostSpansRead) break;
      seq = last.seq + 1;
    }
  } catch (error) {
    if (!/no messages|message not found|404/i.test((error as Error).message)) throw error;
  }
  return spans.slice(0, mostSpansRead).sort((a, b) => a.startMs - b.startMs);
}
