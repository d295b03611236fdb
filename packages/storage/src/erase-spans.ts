/** Erases what one tenant has in a trace. */
import { ownersOf } from "@loraline/bus";
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
  const messages = await Array.fromAsync(messagesOf(jsm, name, spansSubject(traceId)), (message) => ({
    seq: message.seq,
    spans: message.json<SpanView[]>(),
  }));
  const ownerOf = ownersOf(messages.flatMap(({ spans }) => spans));
  for (const { seq, spans } of messages) {
    const others = spans.filter((span) => ![undefined, tenant].includes(ownerOf(span) as string | undefined));
    if (others.length === spans.length) continue;
    if (others.length > 0) await jetstream(nc).publish(spansSubject(traceId), JSON.stringify(others));
    await eraseMessage(jsm, name, seq);
  }
}
