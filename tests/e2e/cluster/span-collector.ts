/** A collector for OTLP over HTTP (JSON) that pods can reach and that keeps all spans. */
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { text } from "node:stream/consumers";

interface CollectedSpan {
  service: string;
  name: string;
  traceId: string;
  spanId: string;
  parentSpanId?: string;
  startMs: number;
  endMs: number;
  attributes: Record<string, unknown>;
}

export interface SpanCollector extends AsyncDisposable {
  /** URL for the chart's `tracing.otlpEndpoint`. */
  url: string;
  spans: readonly CollectedSpan[];
  ofTrace(traceId: string): CollectedSpan[];
}

interface Attribute {
  key: string;
  value: Record<string, unknown>;
}
interface Export {
  resourceSpans?: {
    resource?: { attributes?: Attribute[] };
    scopeSpans?: {
      spans?: {
        traceId: string;
        spanId: string;
        parentSpanId?: string;
        name: string;
        startTimeUnixNano: string;
        endTimeUnixNano: string;
        attributes?: Attribute[];
      }[];
    }[];
  }[];
}

/** @param host address of this machine as pods see it; nothing else is listened on. */
export async function startSpanCollector(host: string): Promise<SpanCollector> {
  const spans: CollectedSpan[] = [];
  const server = createServer((request, response) => {
    void text(request).then((body) => {
      if (request.url === "/v1/traces") keep(JSON.parse(body) as Export);
      response.setHeader("content-type", "application/json").end("{}");
    });
  });
  await new Promise<void>((resolve, reject) => server.once("error", reject).listen(0, host, resolve));
  return {
    url: `http://${host}:${(server.address() as AddressInfo).port}`,
    spans,
    ofTrace: (traceId) => spans.filter((span) => span.traceId === traceId),
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };

  function keep({ resourceSpans = [] }: Export): void {
    for (const { resource, scopeSpans = [] } of resourceSpans) {
      const service = String(valuesOf(resource?.attributes)["service.name"]);
      for (const span of scopeSpans.flatMap((scope) => scope.spans ?? [])) {
        const { traceId, spanId, parentSpanId, name } = span;
        spans.push({
          service,
          name,
          traceId,
          spanId,
          ...(parentSpanId === undefined || parentSpanId === "" ? {} : { parentSpanId }),
          startMs: Number(BigInt(span.startTimeUnixNano) / 1_000_000n),
          endMs: Number(BigInt(span.endTimeUnixNano) / 1_000_000n),
          attributes: valuesOf(span.attributes),
        });
      }
    }
  }
}

const valuesOf = (attributes: Attribute[] = []): Record<string, unknown> =>
  Object.fromEntries(attributes.map(({ key, value }) => [key, Object.values(value)[0]]));
