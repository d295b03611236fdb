/** One server span per request, in the trace the request belongs to. */
import { type Telemetry, traceparentOf } from "@loraline/runtime";
import { context, type Span, SpanStatusCode, trace } from "@opentelemetry/api";
import type { FastifyReply, FastifyRequest, RouteHandlerMethod } from "fastify";

interface JoinedTrace {
  /** traceparent of the trace to continue, when the request brings none itself. */
  parent?: string | null;
  /** traceparents of other traces that the request is linked to. */
  links?: readonly string[];
}

/** Chooses the trace of a request. It is called with the parsed request, before its span starts; `incoming` is the request's own traceparent. */
export type JoinTrace = (request: FastifyRequest, incoming: string | undefined) => Promise<JoinedTrace>;

/**
 * Whether a request's own `traceparent` is heeded where requests are many: everybody's spans are kept in one place, and a tenant that sends one
 * with each request would push out those of others.
 * @param perMinute - of each tenant.
 */
export function createTraceAllowance(perMinute: number, now: () => number = Date.now): (tenant: string) => boolean {
  let minute = 0;
  const used = new Map<string, number>();
  return (tenant) => {
    const current = Math.floor(now() / 60_000);
    if (current !== minute) used.clear();
    minute = current;
    const before = used.get(tenant) ?? 0;
    used.set(tenant, before + 1);
    return before < perMinute;
  };
}

/** A valid incoming `traceparent`; undefined otherwise. */
function incomingTraceparent(request: FastifyRequest): string | undefined {
  const header = request.headers["traceparent"];
  return typeof header === "string" && /^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$/.test(header) ? header : undefined;
}

/**
 * Runs the handler inside the request's span, which ends when the response has left or its reader has. The response
 * carries the span's `traceparent`. Who sends a `traceparent` gets a span in that trace, of reading and chats as many as the tenant is allowed. Without one, reading (GET) gets none:
 * it would be a trace of one span for each poll. And of requests that begin a trace of their own only `share` get one; what
 * belongs to a trace of ours (the first answer of a new version ends the upload's) always does.
 */
export function traced(
  telemetry: Telemetry,
  handler: RouteHandlerMethod,
  { join, share, mayJoin = () => true }: { join?: JoinTrace | undefined; share?: number; mayJoin?: (tenant: string) => boolean } = {},
): RouteHandlerMethod {
  return async function (request, reply) {
    const brought = incomingTraceparent(request);
    const isRead = request.method === "GET" || request.method === "HEAD";
    const isOneOfMany = isRead || share !== undefined;
    const incoming = brought === undefined || (isOneOfMany && !mayJoin(request.caller.tenant)) ? undefined : brought;
    if (incoming === undefined && isRead) return handler.call(this, request, reply);
    const startMs = Date.now() - reply.elapsedTime;
    const joined = (await join?.(request, incoming)) ?? {};
    const begins = incoming === undefined && (joined.parent ?? null) === null;
    if (begins && share !== undefined && Math.random() >= share) return handler.call(this, request, reply);
    const span = telemetry.startSpan(`${request.method} ${request.routeOptions.url ?? request.url}`, {
      kind: "server",
      startMs,
      parent: incoming ?? joined.parent ?? null,
      links: joined.links ?? [],
      attributes: {
        "http.request.method": request.method,
        "http.route": request.routeOptions.url ?? "",
        "loraline.tenant": request.caller.tenant,
        "loraline.request.id": request.id,
      },
    });
    endWithResponse(span, reply);
    void reply.header("traceparent", traceparentOf(span));
    return context.with(trace.setSpan(context.active(), span), () => handler.call(this, request, reply));
  };
}

function endWithResponse(span: Span, reply: FastifyReply): void {
  reply.raw.once("close", () => {
    const { statusCode, writableFinished } = reply.raw;
    span.setAttribute("http.response.status_code", statusCode);
    if (!writableFinished) span.setAttribute("loraline.client.gone", true);
    if (statusCode >= 500) span.setStatus({ code: SpanStatusCode.ERROR, message: `HTTP ${statusCode}` });
    span.end();
  });
}

/** The active request span. */
export const requestSpan = (): Span | undefined => trace.getActiveSpan();
