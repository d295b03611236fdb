/** Pure: the spans of a trace that a tenant may see. */
import type { SpanView } from "@loraline/contracts";

/**
 * A trace may contain spans of several tenants, because anybody who knows a trace id can join the trace by sending it as `traceparent`.
 * Each piece of work begins with a span that names its tenant (a request, a message). A span without a tenant belongs to the nearest span
 * above it that names one; if there is none, the span is shown to nobody.
 */
export function spansOfTenant(spans: readonly SpanView[], tenant: string): SpanView[] {
  const ownerOf = ownersOf(spans);
  return spans.filter((span) => ownerOf(span) === tenant);
}

export const tenantAttribute = "loraline.tenant";

/** What says whose a span is. */
export type SpanPlace = Pick<SpanView, "spanId" | "parentSpanId" | "attributes">;

/** @returns a function that says whose a span of the trace is; undefined: nobody's. */
export function ownersOf(spans: readonly SpanPlace[]): (span: SpanPlace) => unknown {
  const byId = new Map(spans.map((span) => [span.spanId, span]));
  const owners = new Map<string, unknown>();
  return (span) => {
    const above: SpanPlace[] = [];
    let at: SpanPlace | undefined = span;
    let owner: unknown;
    // In forged spans a span can be its own ancestor.
    while (at !== undefined && owner === undefined && !above.includes(at)) {
      above.push(at);
      owner = owners.get(at.spanId) ?? at.attributes[tenantAttribute];
      at = at.parentSpanId === null ? undefined : byId.get(at.parentSpanId);
    }
    for (const { spanId } of above) owners.set(spanId, owner);
    return owner;
  };
}
