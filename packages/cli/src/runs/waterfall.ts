/** Spans as bars over time. */
import type { SpanView } from "@loraline/contracts";
import { cyan, dim, duration, red } from "../terminal.ts";

/** One line per span: service, name (indented by depth), bar, duration. */
export function waterfall(spans: readonly SpanView[], columns: number): string[] {
  if (spans.length === 0) return [];
  const startMs = Math.min(...spans.map((span) => span.startMs));
  const endMs = Math.max(...spans.map((span) => span.startMs + span.durationMs));
  const ordered = inTreeOrder(spans);
  const serviceWidth = Math.max(...spans.map(({ service }) => service.length));
  const nameWidth = Math.min(44, Math.max(...ordered.map(({ span, depth }) => span.name.length + depth * 2)));
  const barWidth = Math.max(10, columns - serviceWidth - nameWidth - 16);
  const scale = barWidth / Math.max(1, endMs - startMs);
  return ordered.map(({ span, depth }) => {
    const from = Math.min(barWidth - 1, Math.floor((span.startMs - startMs) * scale));
    const to = Math.min(barWidth, Math.round((span.startMs + span.durationMs - startMs) * scale));
    const length = Math.max(1, to - from);
    const bar = " ".repeat(from) + "█".repeat(length) + " ".repeat(barWidth - from - length);
    const label = `${"  ".repeat(depth)}${span.name}`;
    const name = label.length > nameWidth ? `${label.slice(0, nameWidth - 1)}…` : label.padEnd(nameWidth);
    return `${dim(span.service.padEnd(serviceWidth))}  ${name}  ${span.status === "error" ? red(bar) : cyan(bar)} ${duration(span.durationMs).padStart(10)}`;
  });
}

/** Orders spans: parents before their children, siblings by start. A span whose parent is not among them stands at the top. */
function inTreeOrder(spans: readonly SpanView[]): { span: SpanView; depth: number }[] {
  const known = new Set(spans.map(({ spanId }) => spanId));
  const children = Map.groupBy(spans, ({ parentSpanId }) => (parentSpanId !== null && known.has(parentSpanId) ? parentSpanId : ""));
  const ordered: { span: SpanView; depth: number }[] = [];
  const visit = (parent: string, depth: number): void => {
    for (const span of (children.get(parent) ?? []).toSorted((a, b) => a.startMs - b.startMs)) {
      ordered.push({ span, depth });
      visit(span.spanId, depth + 1);
    }
  };
  visit("", 0);
  return ordered;
}

/** Milliseconds from the first start to the last end of the spans of some services; 0 when there are none. */
export function spanOf(spans: readonly SpanView[], services: readonly string[]): number {
  const own = spans.filter(({ service }) => services.includes(service));
  if (own.length === 0) return 0;
  return Math.max(...own.map(({ startMs, durationMs }) => startMs + durationMs)) - Math.min(...own.map(({ startMs }) => startMs));
}
