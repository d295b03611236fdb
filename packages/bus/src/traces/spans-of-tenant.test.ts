import type { SpanView } from "@loraline/contracts";
import { expect, it } from "vitest";
import { spansOfTenant } from "./spans-of-tenant.ts";

const span = (spanId: string, parentSpanId: string | null, tenant?: string): SpanView => ({
  traceId: "t",
  spanId,
  parentSpanId,
  service: "s",
  name: spanId,
  startMs: 0,
  durationMs: 1,
  status: "ok",
  attributes: tenant === undefined ? {} : { "loraline.tenant": tenant },
  links: [],
});

it("shows a tenant what is below its own spans, and nothing of others or of nobody", () => {
  const spans = [
    span("upload", "the-clients-own", "acme"),
    span("ingest", "upload", "acme"),
    span("parse", "ingest"),
    span("step", "parse"),
    // Somebody else who knows the trace id, and hangs itself below acme's spans.
    span("chat", "parse", "other"),
    span("engine", "chat"),
    span("stray", "nowhere"),
    span("a", "b"),
    span("b", "a"),
  ];
  const namesFor = (tenant: string) => spansOfTenant(spans, tenant).map(({ name }) => name);
  expect(namesFor("acme")).toEqual(["upload", "ingest", "parse", "step"]);
  expect(namesFor("other")).toEqual(["chat", "engine"]);
  expect(namesFor("third")).toEqual([]);
});
