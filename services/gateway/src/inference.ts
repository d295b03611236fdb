/** `/v1/chat/completions` and `/v1/completions`: to the replica that has the version proven, streamed through. */
import { Readable } from "node:stream";
import { PermanentError, RetryLaterError, traceIdOf, traceparentOf } from "@loraline/runtime";
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { Agent, type Dispatcher } from "undici";
import type { GatewayContext } from "./context.ts";
import { decideRoute, type ReplicaView, type RouteDecision } from "./decide-route.ts";
import { engineErrorOf, type Renaming, renameEvents, renameModel } from "./engine-answer.ts";
import { badRequest } from "./errors.ts";
import { modelNotFound } from "./models.ts";
import { type JoinTrace, requestSpan } from "./tracing.ts";

/** Engines queue; the SDKs themselves give up after ten minutes. */
const answerWithinMs = 10 * 60_000;
const connectWithinMs = 2000;
const maxTries = 3;
/** A version is "newly served" for this long; what comes first within it ends the trace that began with the upload. */
const newlyServedMs = 60 * 60_000;
const maxErrorBytes = 64 * 1024;
const watchLagMs = 50;

type Routed = Extract<RouteDecision, { kind: "route" }>;
type Answer = Dispatcher.ResponseData & { replica: ReplicaView };

export function inferenceRoutes(context: GatewayContext): ((app: FastifyInstance) => void) & AsyncDisposable {
  const { table, traffic, log } = context;
  // One request per connection: an engine's answers are long, and must not wait for one another.
  const engines = new Agent({
    connect: { timeout: connectWithinMs },
    headersTimeout: answerWithinMs,
    bodyTimeout: answerWithinMs,
    pipelining: 1,
  });
  /** Engine names whose first request this gateway has seen. */
  const greeted = new Set<string>();

  const routeOf = async (tenant: string, model: string): Promise<RouteDecision> => {
    const decision = decideRoute(table.view(), { tenant, model });
    if (decision.kind === "route") return decision;
    // Who saw a job succeed a moment ago may be ahead of our watches.
    await new Promise((resolve) => setTimeout(resolve, watchLagMs));
    return decideRoute(table.view(), { tenant, model });
  };

  const joinVersion: JoinTrace = async (request, incoming) => {
    const { model } = (request.body ?? {}) as { model?: unknown };
    if (typeof model !== "string") return {};
    request.routed = await routeOf(request.caller.tenant, model);
    const version = request.routed.kind === "route" ? request.routed.version : null;
    const trace = version?.trace ?? null;
    if (version === null || trace === null) return {};
    const isFirst = !greeted.has(version.engineName) && Date.now() - Date.parse(version.servedAt ?? version.createdAt) < newlyServedMs;
    greeted.add(version.engineName);
    if (incoming !== undefined) return traceIdOf(incoming) === traceIdOf(trace) ? {} : { links: [trace] };
    return isFirst ? { parent: trace } : { links: [trace] };
  };

  /**
   * Asks replica after replica until one answers with a status that is its own to give. A replica that does not know the
   * engine name (it restarted, and its agent has not noticed yet) is not proven, whatever the table says.
   */
  const ask = async (path: string, body: Record<string, unknown>, routed: Routed, request: FastifyRequest, reply: FastifyReply) => {
    const gone = new AbortController();
    const clientLeft = (): void => gone.abort();
    reply.raw.once("close", clientLeft);
    const signal = AbortSignal.any([gone.signal, context.signal]);
    const span = requestSpan();
    const sent = JSON.stringify({ ...body, model: routed.engineModel });
    const { tracestate } = request.headers;

    // A single replica is asked again: an idle connection may have ended just when it was taken.
    const tries = routed.replicas.length === 1 ? [routed.replicas[0], routed.replicas[0]] : routed.replicas.slice(0, maxTries);
    let why = "";
    for (const replica of tries) {
      const { engine, replica: name } = replica.state;
      const counted = traffic.begin({ engineName: routed.engineModel, engine, replica: name });
      const leave = table.begin(replica);
      const release = (): void => {
        leave();
        counted.end("ignored");
      };
      try {
        const answer = await engines.request({
          origin: new URL(replica.state.url).origin,
          path: new URL(path, withSlash(replica.state.url)).pathname,
          method: "POST",
          headers: {
            "content-type": "application/json",
            "x-request-id": request.id,
            ...(span === undefined ? {} : { traceparent: traceparentOf(span) }),
            ...(typeof tracestate === "string" ? { tracestate } : {}),
          },
          body: sent,
          signal,
        });
        if (answer.statusCode !== 404 && answer.statusCode !== 503) {
          counted.firstByte();
          reply.raw.once("close", () => {
            counted.end(answer.statusCode >= 500 ? "failed" : answer.statusCode >= 400 ? "ignored" : "served");
            leave();
          });
          return Object.assign(answer, { replica });
        }
        why = `replica ${replica.state.replica} answered ${answer.statusCode}: ${engineErrorOf(answer.statusCode, await textOf(answer), renamingOf(routed)).error.message}`;
      } catch (error) {
        if (gone.signal.aborted) throw new PermanentError("client_closed_request", "The client went away.", { status: 499 });
        if (context.signal.aborted) throw new RetryLaterError("shutting_down", 1000, "The gateway is shutting down. Ask again.");
        if (/TIMEOUT/.test((error as NodeJS.ErrnoException).code ?? "") && !/CONNECT/.test((error as NodeJS.ErrnoException).code ?? "")) {
          release();
          throw new PermanentError("engine_timeout", `The engine did not answer within ${answerWithinMs / 1000} s.`, { status: 504 });
        }
        why = `replica ${replica.state.replica} cannot be reached: ${(error as Error).message}`;
      }
      release();
      log.warn({ model: routed.model, replica: replica.state.replica, engineModel: routed.engineModel }, `trying elsewhere: ${why}`);
    }
    throw new RetryLaterError("model_not_ready", 2000, `${routed.model} is answered by no replica now: ${why}`);
  };

  const routes = (app: FastifyInstance): void => {
    for (const path of ["chat/completions", "completions"]) {
      app.post(`/${path}`, { config: { join: joinVersion } }, async (request, reply) => {
        const body = bodyOf(request.body);
        const first = request.routed ?? (await routeOf(request.caller.tenant, body.model));
        // Decided again without a pause before `ask` counts this request, so that requests that come at once see each other.
        const now = decideRoute(table.view(), { tenant: request.caller.tenant, model: body.model });
        const routed = first.kind === "route" && now.kind === "route" && now.engineModel === first.engineModel ? now : first;
        if (routed.kind === "unknown") throw modelNotFound(body.model, routed.reason);
        if (routed.kind === "unavailable") throw new RetryLaterError("model_not_ready", routed.retryAfterMs, routed.reason);

        const version = routed.version === null ? "base" : String(routed.version.version);
        requestSpan()?.setAttributes({
          "gen_ai.request.model": body.model,
          "gen_ai.response.model": routed.model,
          "loraline.stream": body["stream"] === true,
        });
        const askedAt = performance.now();
        const answer: Answer = await ask(`v1/${path}`, body, routed, request, reply);
        requestSpan()?.setAttributes({
          "loraline.replica": answer.replica.state.replica,
          "loraline.engine.first_byte_ms": Math.round((performance.now() - askedAt) * 10) / 10,
        });
        void reply.header("x-loraline-version", version).header("x-loraline-replica", answer.replica.state.replica);

        const contentType = headerOf(answer, "content-type") ?? "application/json";
        if (answer.statusCode >= 400) {
          // The engine's own door is closed to us: nothing the caller could mend.
          const status = answer.statusCode === 401 || answer.statusCode === 403 ? 502 : answer.statusCode;
          return reply.code(status).send(engineErrorOf(status, await textOf(answer), renamingOf(routed)));
        }
        void reply.code(answer.statusCode).header("content-type", contentType);
        if (!contentType.startsWith("text/event-stream")) return reply.send(renameModel(await answer.body.text(), renamingOf(routed)));

        const onBroken = (error: unknown): void => {
          if (reply.raw.destroyed) return;
          log.warn({ err: error, model: routed.model, replica: answer.replica.state.replica }, "the engine broke off while it answered");
          requestSpan()?.setAttribute("loraline.engine.broke_off", true);
        };
        return reply
          .header("cache-control", "no-cache")
          .header("x-accel-buffering", "no")
          .send(Readable.from(renameEvents(answer.body, renamingOf(routed), onBroken), { objectMode: false }));
      });
    }
  };
  return Object.assign(routes, { [Symbol.asyncDispose]: () => engines.destroy() });
}

const renamingOf = ({ engineModel, model }: Routed): Renaming => ({ from: engineModel, to: model });
const withSlash = (url: string): string => (url.endsWith("/") ? url : `${url}/`);

function bodyOf(raw: unknown): Record<string, unknown> & { model: string } {
  if (typeof raw !== "object" || raw === null || Array.isArray(raw)) throw badRequest("invalid_body", "The body must be a JSON object.");
  const { model } = raw as { model?: unknown };
  if (typeof model !== "string" || model === "") throw badRequest("missing_model", "model: say which model is to answer.", "model");
  return { ...raw, model };
}

const headerOf = (answer: Dispatcher.ResponseData, name: string): string | undefined => {
  const value = answer.headers[name];
  return Array.isArray(value) ? value[0] : value;
};

/** The first part of a body that explains a failure. */
async function textOf(answer: Dispatcher.ResponseData): Promise<string> {
  const text = await answer.body.text().catch(() => "");
  return text.slice(0, maxErrorBytes);
}
