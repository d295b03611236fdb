/**
 * `/v1/chat/completions`, `/v1/completions`, `/v1/embeddings`: to the replica that has the version proven, streamed through.
 *
 *   model name ──► decideRoute ──► limits ──► replica ──► answer, renamed ──► reader
 *                                                └──► traffic, usage, metrics: once, when the request is over
 *
 * Nothing else of an engine can be reached: its path is one of these three, whatever the request's was.
 */
import { defaultEngineKind, engineKinds, type EngineRecord } from "@loraline/contracts";
import { PermanentError, RetryLaterError, traceIdOf, traceparentOf } from "@loraline/runtime";
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import type { GatewayContext } from "../context.ts";
import { createVersionAsker } from "./ask-for-versions.ts";
import { decideRoute, type RouteDecision, type RouteRequest, stickyKeyOf } from "./decide-route.ts";
import { brokeOffEvent, createEventFilter, engineErrorOf, type Renaming, renameModel, type TokenCount, usageOf } from "./engine-answer.ts";
import { createEngineClient, type EngineReader, type RunningQuestion } from "./engine-client.ts";
import { badRequest, RateLimitError } from "../errors.ts";
import { judgeInferenceBody, mostTokensOf } from "./judge-inference-body.ts";
import type { Admission } from "../access/limits.ts";
import { modelNotFound } from "./models.ts";
import { type JoinTrace, requestSpan } from "../tracing.ts";

/** Engines queue; the SDKs themselves give up after ten minutes. */
const answerWithinMs = 10 * 60_000;
const connectWithinMs = 2000;
const maxTries = 3;
/** A version is "newly served" for this long; what comes first within it ends the trace that began with the upload. */
const newlyServedMs = 60 * 60_000;
const maxErrorLength = 64 * 1024;
const watchLagMs = 50;

export const inferencePaths = ["chat/completions", "completions", "embeddings"] as const;
export type InferencePath = (typeof inferencePaths)[number];
export type InferenceBody = Record<string, unknown> & { model: string };

type Routed = Extract<RouteDecision, { kind: "route" }>;

export function inferenceRoutes(context: GatewayContext): ((app: FastifyInstance) => void) & AsyncDisposable {
  const { table, traffic, limits, usage, metrics, log } = context;
  const engines = createEngineClient({ answerWithinMs, connectWithinMs, apiKey: context.engineKey });
  const askForVersion = createVersionAsker(context);
  /** Engine names whose first request this gateway has seen. */
  const greeted = new Set<string>();
  const running = new Set<RunningQuestion>();
  context.signal.addEventListener("abort", () => {
    for (const question of running) question.abort(new Error("the gateway is shutting down"));
  });

  const routeOf = async (asked: RouteRequest): Promise<RouteDecision> => {
    const decision = decideRoute(table.view(), asked);
    if (decision.kind === "route") return decision;
    // Who saw a job succeed a moment ago may be ahead of our watches.
    await new Promise((resolve) => setTimeout(resolve, watchLagMs));
    return decideRoute(table.view(), asked);
  };

  const joinVersion: JoinTrace = async (request, incoming) => {
    const body = request.body as Partial<InferenceBody> | null | undefined;
    if (typeof body?.model !== "string") return {};
    request.routed = await routeOf(askedOf(request, body as InferenceBody));
    const version = request.routed.kind === "route" ? request.routed.version : null;
    const trace = version?.trace ?? null;
    if (version === null || trace === null) return {};
    const isFirst = !greeted.has(version.engineName) && Date.now() - Date.parse(version.servedAt ?? version.createdAt) < newlyServedMs;
    greeted.add(version.engineName);
    if (incoming !== undefined) return traceIdOf(incoming) === traceIdOf(trace) ? {} : { links: [trace] };
    return isFirst ? { parent: trace } : { links: [trace] };
  };

  /** Counts a request once, whoever ends it: the engine, its reader, or the gateway. */
  const begin = (routed: Routed, request: FastifyRequest, admission: Admission | undefined) => {
    const { tenant } = request.caller;
    const named = nameOf(routed, tenant);
    const measured = metrics.model({ tenant, ...named, engineName: routed.engineModel });
    const beganAt = performance.now();
    measured.begin();
    let over = false;
    return {
      firstByte: () => measured.firstByte(performance.now() - beganAt),
      /** @param tokens - the engine's count; else what was passed on, as an estimate. */
      end(outcome: "served" | "failed" | "ignored", tokens: TokenCount | { events: number } | null): void {
        if (over) return;
        over = true;
        measured.end(outcome, performance.now() - beganAt);
        const count = tokens === null || "prompt" in tokens ? tokens : estimated(request, tokens.events);
        // Nobody knows what a broken answer has cost, so it is the most it could.
        admission?.settle(tokens === null ? 0 : "prompt" in tokens ? tokens.prompt + tokens.completion : Number.POSITIVE_INFINITY);
        if (outcome === "ignored" && tokens === null) return;
        const { prompt: promptTokens, completion: completionTokens } = count ?? { prompt: 0, completion: 0 };
        measured.tokens(promptTokens, completionTokens);
        const isEstimate = tokens !== null && "events" in tokens;
        const failed = outcome === "failed";
        usage.count({ tenant, model: routed.model, ...named, promptTokens, completionTokens, failed, estimated: isEstimate });
      },
    };
  };

  /**
   * Asks replica after replica until one answers with a status that is its own to give. A replica that does not know the
   * engine name (it restarted, and its agent has not noticed yet) is not proven, whatever the table says.
   */
  const answer = async (
    path: InferencePath,
    body: InferenceBody,
    routed: Routed,
    admission: Admission | undefined,
    at: Exchange,
  ): Promise<void> => {
    const { request, reply } = at;
    // Its "close" is over: nobody would stop the engine, and a stream that nobody takes would never end.
    if (reply.raw.destroyed) {
      admission?.settle(0);
      throw clientWentAway();
    }
    const span = requestSpan();
    const askedFor = asksForUsage(body);
    const counted = begin(routed, request, admission);
    const sent = JSON.stringify({
      ...body,
      model: routed.engineModel,
      // The tokens are counted by the engine, also for who does not want to know.
      ...(body["stream"] === true && path !== "embeddings" ? { stream_options: { ...optionsOf(body), include_usage: true } } : {}),
    });
    const headers: Record<string, string> = { "content-type": "application/json", "x-request-id": request.id };
    if (span !== undefined) headers["traceparent"] = traceparentOf(span);
    const { tracestate } = request.headers;
    if (typeof tracestate === "string") headers["tracestate"] = tracestate;

    // A single replica is asked again: an idle connection may have ended just when it was taken.
    const tries = routed.replicas.length === 1 ? [routed.replicas[0], routed.replicas[0]] : routed.replicas.slice(0, maxTries);
    let why = "";
    let left = false;
    let streaming = false;
    try {
      for (const [index, replica] of tries.entries()) {
        const { engine, replica: name } = replica.state;
        const isLastTry = index === tries.length - 1;
        if (index > 0) {
          metrics.retried();
          log.warn({ model: routed.model, engineModel: routed.engineModel }, `trying elsewhere: ${why}`);
        }
        const inTraffic = traffic.begin({ engineName: routed.engineModel, engine, replica: name });
        const leave = table.begin(replica);
        const askedAt = performance.now();
        const told = (): void => {
          span?.setAttributes({
            "loraline.replica": name,
            "loraline.engine.first_byte_ms": Math.round((performance.now() - askedAt) * 10) / 10,
          });
          counted.firstByte();
          void reply
            .header("x-loraline-version", routed.version === null ? "base" : String(routed.version.version))
            .header("x-loraline-replica", name);
        };
        const question: RunningQuestion = engines.ask({
          url: replica.state.url,
          path: `v1/${path}`,
          headers,
          body: sent,
          onAnswer(status, contentType) {
            inTraffic.firstByte();
            // Of a 500 the text decides.
            if (!isFinal(status) || status === 500) return undefined;
            told();
            if (status !== 200 || !contentType.startsWith("text/event-stream")) return undefined;
            streaming = true;
            return streamTo(reply, contentType, {
              renaming: renamingOf(routed),
              hideUsage: !askedFor,
              onEnd(outcome, tokens) {
                running.delete(question);
                reply.raw.off("close", clientLeft);
                inTraffic.end(outcome, "prompt" in tokens ? tokens : undefined);
                leave();
                counted.end(outcome, tokens);
              },
              onBroken(error) {
                log.warn({ err: error, model: routed.model, replica: name }, "the engine broke off while it answered");
                span?.setAttribute("loraline.engine.broke_off", true);
              },
            });
          },
        });
        running.add(question);
        const clientLeft = (): void => {
          left = true;
          question.abort(new Error("the client went away"));
        };
        reply.raw.once("close", clientLeft);
        let outcome: "served" | "failed" | "ignored" = "ignored";
        let tokens: TokenCount | null = null;
        try {
          const { status, contentType, text } = await question.answer;
          if (streaming) return; // it ends by itself
          if (!isFinal(status) || isDead(engineOf(routed), status, text)) {
            if (isLastTry) outcome = "failed";
            why = `replica ${name} answered ${status}: ${engineErrorOf(status, text.slice(0, maxErrorLength), renamingOf(routed)).error.message}`;
            continue;
          }
          if (status === 500) told();
          if (status >= 400) {
            outcome = status >= 500 ? "failed" : "ignored";
            counted.end(outcome, null);
            void reply.code(status).send(engineErrorOf(status, text.slice(0, maxErrorLength), renamingOf(routed)));
            return;
          }
          outcome = "served";
          tokens = usageOf(text) ?? null;
          counted.end(outcome, tokens ?? { events: 0 });
          void reply
            .code(status)
            .header("content-type", contentType)
            .send(renameModel(text, renamingOf(routed)));
          return;
        } catch (error) {
          if (left) throw clientWentAway();
          if (context.signal.aborted) throw new RetryLaterError("shutting_down", 1000, "The gateway is shutting down. Ask again.");
          const { code = "" } = error as NodeJS.ErrnoException;
          if (/TIMEOUT/.test(code) && !/CONNECT/.test(code)) {
            outcome = "failed";
            throw new PermanentError("engine_timeout", `The engine did not answer within ${answerWithinMs / 1000} s.`, { status: 504 });
          }
          if (isLastTry) outcome = "failed";
          // A pod that vanished leaves connections hanging: not every request should wait for that.
          table.unreachable(replica);
          why = `replica ${name} cannot be reached: ${(error as Error).message}`;
        } finally {
          if (!streaming) {
            running.delete(question);
            reply.raw.off("close", clientLeft);
            inTraffic.end(outcome, tokens ?? undefined);
            leave();
          }
        }
      }
      throw new RetryLaterError("model_not_ready", 2000, `${routed.model} is answered by no replica now: ${why}`);
    } catch (error) {
      // Who leaves before the first byte has still made the engine work, nobody knows how much.
      if (left) counted.end("ignored", { events: 0 });
      else counted.end("failed", null);
      throw error;
    }
  };

  const admitted = async (path: InferencePath, body: InferenceBody, routed: Routed, request: FastifyRequest) => {
    const { tenant } = request.caller;
    const { adapter } = nameOf(routed, tenant);
    const mostTokens = (): number => mostTokensOf(path, body, { bytes: bytesOf(request), maxModelLen: engineOf(routed)?.maxModelLen ?? 0 });
    try {
      return await limits.admit({ tenant, adapter, mostTokens });
    } catch (error) {
      if (error instanceof RateLimitError) metrics.limited(error.kind);
      throw error;
    }
  };
  const engineOf = ({ replicas: [{ state }] }: Routed): EngineRecord | undefined => table.engine(state.engine);

  const routes = (app: FastifyInstance): void => {
    for (const path of inferencePaths) {
      app.post(`/${path}`, { config: { scope: ["infer"], join: joinVersion, sampled: true } }, async (request, reply) => {
        const body = bodyOf(request.body);
        const asked = askedOf(request, body);
        const first = request.routed ?? (await routeOf(asked));
        if (first.kind === "unknown") throw modelNotFound(body.model, first.reason);
        if (first.named !== undefined) askForVersion(request.caller.tenant, first.named);
        if (first.kind === "unavailable") throw new RetryLaterError(first.code, first.retryAfterMs, first.reason);
        judgeInferenceBody(path, body, engineOf(first));
        const admission = await admitted(path, body, first, request);
        if (admission !== undefined) void reply.headers(admission.headers);
        // Decided again without a pause before `answer` counts this request, so that requests that come at once see each other.
        const now = decideRoute(table.view(), asked);
        const routed = now.kind === "route" && now.engineModel === first.engineModel ? now : first;
        requestSpan()?.setAttributes({
          "gen_ai.request.model": body.model,
          "gen_ai.response.model": routed.model,
          "loraline.stream": body["stream"] === true,
        });
        await answer(path, body, routed, admission, { request, reply });
        return reply;
      });
    }
  };
  return Object.assign(routes, { [Symbol.asyncDispose]: () => engines[Symbol.asyncDispose]() });
}

const askedOf = ({ caller: { tenant, by }, headers }: FastifyRequest, body: InferenceBody): RouteRequest => ({
  tenant,
  model: body.model,
  sticky: () => stickyKeyOf({ header: headers["x-loraline-sticky"], by, body }),
});

interface Exchange {
  request: FastifyRequest;
  reply: FastifyReply;
}

const clientWentAway = (): PermanentError => new PermanentError("client_closed_request", "The client went away.", { status: 499 });

/** Not the replica's to give: it does not know the name (any more), is not ready, or asks us for another key. */
const isFinal = (status: number): boolean => ![401, 403, 404, 503].includes(status);

/** The engine's inner process died, before or while it computed this answer: another replica may well answer the same request. */
const isDead = (engine: EngineRecord | undefined, status: number, text: string): boolean =>
  status === 500 && engineKinds[engine?.kind ?? defaultEngineKind].isDead(text);

/** Writes the engine's events to the reader as they come, and slows the engine down to the reader's pace. */
function streamTo(
  reply: FastifyReply,
  contentType: string,
  {
    renaming,
    hideUsage,
    onEnd,
    onBroken,
  }: {
    renaming: Renaming;
    hideUsage: boolean;
    onEnd(outcome: "served" | "failed", tokens: TokenCount | { events: number }): void;
    onBroken(error: Error): void;
  },
): EngineReader {
  const { raw } = reply;
  const filter = createEventFilter(renaming, { hideUsage });
  reply.hijack();
  raw.writeHead(200, {
    ...(reply.getHeaders() as Record<string, string>),
    "content-type": contentType,
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
  });
  const tokens = (): TokenCount | { events: number } => filter.usage ?? { events: filter.events };
  return {
    read(chunk, resume) {
      const bytes = filter.push(chunk);
      if (bytes.length === 0 || raw.write(bytes)) return true;
      raw.once("drain", resume);
      return false;
    },
    end() {
      const bytes = filter.end();
      const { failure } = filter;
      if (failure !== undefined) onBroken(new Error(failure));
      onEnd(failure === undefined ? "served" : "failed", tokens());
      raw.end(bytes);
    },
    broken(error) {
      const left = raw.destroyed;
      if (!left) onBroken(error);
      onEnd(left ? "served" : "failed", tokens());
      if (!left) raw.end(brokeOffEvent("The engine broke off while it answered. Ask again."));
    },
  };
}

const renamingOf = ({ engineModel, model }: Routed): Renaming => ({ from: engineModel, to: model });

/** What the request is counted under. */
function nameOf({ version, model, replicas: [{ state }] }: Routed, tenant: string) {
  const adapter = version === null ? null : model.slice(tenant.length + 1, model.lastIndexOf("@"));
  return { base: state.base, adapter, version: version?.version ?? null };
}

/** Bytes of the body as it was sent. */
const bytesOf = ({ headers, body }: FastifyRequest): number => Number(headers["content-length"]) || Buffer.byteLength(JSON.stringify(body));
const estimated = (request: FastifyRequest, events: number): TokenCount => ({
  prompt: Math.ceil(bytesOf(request) / 4),
  completion: events,
});

const optionsOf = (body: InferenceBody): Record<string, unknown> => {
  const options = body["stream_options"];
  return typeof options === "object" && options !== null ? { ...options } : {};
};
const asksForUsage = (body: InferenceBody): boolean => optionsOf(body)["include_usage"] === true;

function bodyOf(raw: unknown): InferenceBody {
  if (typeof raw !== "object" || raw === null || Array.isArray(raw)) throw badRequest("invalid_body", "The body must be a JSON object.");
  const { model } = raw as { model?: unknown };
  if (typeof model !== "string" || model === "") throw badRequest("missing_model", "model: say which model is to answer.", "model");
  return raw as InferenceBody;
}
