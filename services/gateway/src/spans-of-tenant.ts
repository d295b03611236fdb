/** Pure: what of a trace a tenant may see. */
import type { SpanView } from "@loraline/contracts";

/**
 * Whoever knows a trace id can join its trace by sending it as `traceparent`, so a trace may hold spans of several tenants. Work
 * begins with a span that names its tenant (a request, a message); what has no name of its own belongs to the nearest span above it
 * that has one, and what has none above it is shown to nobody.
 */
export function spansOfTenant(spans: readonly SpanView[], tenant: string): SpanView[] {
  const byId = new Map(spans.map((span) => [span.spanId, span]));
  const owners = new Map<string, unknown>();
  const ownerOf = (span: SpanView): unknown => {
    const above: SpanView[] = [];
    let at: SpanView | undefined = span;
    let owner: unknown;
    // A span can be its own ancestor when somebody made it up.
    while (at !== undefined && owner === undefined && !above.includes(at)) {
      above.push(at);
      owner = owners.get(at.spanId) ?? at.attributes["loraline.tenant"];
      at = at.parentSpanId === null ? undefined : byId.get(at.parentSpanId);
    }
    for (const { spanId } of above) owners.set(spanId, owner);
    return owner;
  };
  return spans.filter((span) => ownerOf(span) === tenant);
}
