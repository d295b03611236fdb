/** Erases what one tenant has in a trace. */
import { ownersOf, type SpanPlace, tenantAttribute } from "@loraline/bus";
import { type SpanView, spansSubject, streams } from "@loraline/contracts";
import { eraseMessage, messagesOf } from "@loraline/objects";
import { jetstream, jetstreamManager } from "@nats-io/jetstream";
import type { NatsConnection } from "@nats-io/transport-node";

/**
 * Spans of other tenants stay: anybody who knows a trace's id can join the trace, and delete later what he did in it. Can be done again at
 * any time.
 */
export async function eraseSpansOf(nc: NatsConnection, tenant: string, traceId: string): Promise<void> {
  const jsm = await jetstreamManager(nc);
  const { name } = streams.SPANS;
  const read = async function* (): AsyncGenerator<{ seq: number; spans: SpanView[] }> {
    for await (const message of messagesOf(jsm, name, spansSubject(traceId))) yield { seq: message.seq, spans: message.json<SpanView[]>() };
  };
  // A trace may be as large as the stream: of all spans only what says whose they are is kept in memory.
  const places: SpanPlace[] = [];
  for await (const { spans } of read())
    for (const { spanId, parentSpanId, attributes } of spans)
      places.push({ spanId, parentSpanId, attributes: { [tenantAttribute]: attributes[tenantAttribute] } });
  const ownerOf = ownersOf(places);
  for await (const { seq, spans } of read()) {
    const others = spans.filter((span) => ![undefined, tenant].includes(ownerOf(span) as string | undefined));
    if (others.length === spans.length) continue;
    if (others.length > 0) await jetstream(nc).publish(spansSubject(traceId), JSON.stringify(others));
    await eraseMessage(jsm, name, seq);
  }
}
