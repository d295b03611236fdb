/** Counts and logs every request that is answered, whoever answers it: a handler, the key check, a limit, an error, or the HTTP parser. */
import { type Log, traceIdOf } from "@loraline/runtime";
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import type { GatewayMetrics } from "./metrics.ts";

/** errors: only answers of 400 and above. */
export const accessLogs = ["all", "errors", "none"] as const;
export type AccessLog = (typeof accessLogs)[number];

/** Asked every few seconds by machines, and of no interest while they succeed. */
const probes = new Set(["/healthz", "/readyz"]);

interface Answers {
  /** A request that was no valid HTTP, so that no route has seen it. */
  malformed(): void;
}

export function followAnswers(
  app: FastifyInstance,
  { metrics, log, which }: { metrics: GatewayMetrics; log: Log; which: AccessLog },
): Answers {
  const tell = (status: number): boolean => which === "all" || (which === "errors" && status >= 400);
  app.decorateRequest("failure", null);
  app.addHook("onRequest", async (request, reply) => {
    const began = performance.now();
    reply.raw.once("close", () => {
      const answer = answerOf(request, reply, (performance.now() - began) / 1000);
      metrics.answered(answer);
      const { status, route, seconds, traceId, ...rest } = answer;
      if (probes.has(route) && status < 400) return;
      if (!tell(status)) return;
      const path = request.url.split("?", 1)[0]?.slice(0, 300);
      const { writableFinished } = reply.raw;
      log.info(
        {
          requestId: request.id,
          ...rest,
          status,
          route,
          path,
          by: (request.caller as FastifyRequest["caller"] | undefined)?.by,
          durationMs: Math.round(seconds * 1000),
          ...(traceId === undefined ? {} : { trace_id: traceId }),
          ...(writableFinished ? {} : { clientLeft: true }),
        },
        "request",
      );
    });
  });
  return {
    malformed() {
      const nobody = { route: "", method: "", error: "bad_request", tenant: "unknown", model: "" };
      metrics.answered({ ...nobody, status: 400, seconds: 0, traceId: undefined });
      if (tell(400)) log.info({ ...nobody, status: 400 }, "request");
    },
  };
}

function answerOf(request: FastifyRequest, reply: FastifyReply, seconds: number) {
  const { statusCode, headersSent } = reply.raw;
  const left = !headersSent;
  return {
    route: request.is404 ? "" : (request.routeOptions.url ?? ""),
    method: request.is404 ? "" : request.method,
    status: left ? 499 : statusCode,
    error: left ? "client_closed_request" : (request.failure ?? (statusCode >= 400 ? "other" : "")),
    tenant: (request.caller as FastifyRequest["caller"] | undefined)?.tenant ?? "unknown",
    model: modelOf(request),
    seconds,
    traceId: traceIdOf(reply.getHeader("traceparent") as string | undefined),
  };
}

/** Only names of what there is: what clients make up would be a series each. */
function modelOf({ routed }: FastifyRequest): string {
  if (!routed) return "";
  if (routed.kind === "unknown") return "unknown";
  const model = routed.kind === "route" ? routed.model : routed.counted.model;
  return model.replace(/@\d+$/, "");
}
