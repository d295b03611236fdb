/**
 * Questions to models: to the replica that has the version proven, streamed through.
 *
 *   choose ─────────────────► admit ──────► ask ───────────────► stream ──────────► account
 *   model name, decideRoute   body, limits  replica by replica   answer, renamed    traffic, usage, metrics: once, at the end
 *   decide-route.ts           limits.ts     ask-replicas.ts      stream-answer.ts   request-account.ts
 *
 * `/v1/chat/completions`, `/v1/completions` and `/v1/embeddings` are asked as they are; `/v1/responses` (responses/) is asked as a chat. Nothing
 * else of an engine can be reached: its path is one of these three, whatever the request's was.
 */
import type { EngineRecord } from "@loraline/contracts";
import { RetryLaterError, traceIdOf } from "@loraline/runtime";
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import type { Admission } from "../access/limits.ts";
import type { GatewayContext } from "../context.ts";
import { badRequest, RateLimitError } from "../errors.ts";
import { type JoinTrace, requestSpan } from "../tracing.ts";
import { createCheckpointAsker, createVersionAsker } from "./ask-for-versions.ts";
import { createReplicaAsker } from "./ask-replicas.ts";
import { createEngineWait } from "./engines/wait-for-engine.ts";
import { createFirstRequests } from "./first-requests.ts";
import { decideRoute, type RouteDecision, type Routed, type RouteRequest, stickyKeyOf } from "./decide-route.ts";
import { type InferenceBody, type InferencePath, inferencePaths, judgeInferenceBody, mostTokensOf } from "./judge-inference-body.ts";
import { modelNotFound } from "./models.ts";
import { bytesOf, countedAs, countUnanswered } from "./request-account.ts";
import type { Presentation } from "./stream-answer.ts";
import { systemFor, systemHeader, withSystem } from "./served-system.ts";

const watchLagMs = 50;

interface Question {
  path: InferencePath;
  body: InferenceBody;
  /** How the version is chosen. */
  asked: RouteRequest;
  /** Of the body. */
  bytes: number;
  /** Absent: the answer goes to the client as the engine gives it. */
  present?: Presentation;
}

export interface Inference extends AsyncDisposable {
  /**
   * Answers a request. Resolves when the answer is sent, or when a stream of it has begun.
   * @throws PermanentError 400, 404 `model_not_found`; RetryLaterError `model_not_ready`, `version_loading`; RateLimitError
   */
  answer(question: Question, request: FastifyRequest, reply: FastifyReply): Promise<void>;
  joinVersion: JoinTrace;
}

export function createInference(context: GatewayContext): Inference {
  const { table, limits, metrics } = context;
  const asker = createReplicaAsker(context);
  const askForVersion = createVersionAsker(context);
  const askForCheckpoint = createCheckpointAsker(context);
  const isFirstRequest = createFirstRequests();
  const waitForEngine = createEngineWait(context);

  const routeOf = async (asked: RouteRequest): Promise<RouteDecision> => {
    const decision = decideRoute(table.view(), asked);
    if (decision.kind === "route") return decision;
    // A client that saw its job succeed a moment ago may be ahead of our watches.
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
    const isFirst = isFirstRequest(version, Date.now());
    if (incoming !== undefined) return traceIdOf(incoming) === traceIdOf(trace) ? {} : { links: [trace] };
    return isFirst ? { parent: trace } : { links: [trace] };
  };

  /** @throws PermanentError 404 `model_not_found`; RetryLaterError `model_not_ready`, `version_loading` */
  const choose = async (request: FastifyRequest, reply: FastifyReply, asked: RouteRequest): Promise<Routed> => {
    let decision = request.routed ?? (await routeOf(asked));
    if (decision.kind === "unavailable") {
      if (decision.named !== undefined) askForVersion(request.caller.tenant, decision.named);
      decision = await waitForEngine(asked, decision, reply);
    }
    request.routed = decision;
    if (decision.kind === "unknown" && decision.checkpoint !== undefined)
      throw await askForCheckpoint(decision.checkpoint, request.caller.by);
    if (decision.kind === "unknown") throw modelNotFound(asked.model, decision.reason);
    if (decision.named !== undefined) askForVersion(request.caller.tenant, decision.named);
    if (decision.kind === "unavailable") {
      if (!reply.raw.closed) countUnanswered(context, request.caller.tenant, decision.counted);
      throw new RetryLaterError(decision.code, decision.retryAfterMs, decision.reason);
    }
    return decision;
  };

  /** @throws PermanentError 400; RateLimitError */
  const admit = async ({ path, body, bytes }: Question, routed: Routed, request: FastifyRequest): Promise<Admission | undefined> => {
    const engine = engineOf(routed);
    judgeInferenceBody(path, body, engine);
    const { tenant } = request.caller;
    const { adapter } = countedAs(routed, tenant);
    const system = systemFor(path, body, routed.version, request.headers[systemHeader]);
    const withPrompt = bytes + Buffer.byteLength(system ?? "");
    const mostTokens = (): number =>
      mostTokensOf(path, withSystem(body, system), { bytes: withPrompt, maxModelLen: engine?.maxModelLen ?? 0 });
    try {
      return await limits.admit({ tenant, adapter, mostTokens });
    } catch (error) {
      if (error instanceof RateLimitError) metrics.limited(error.kind);
      throw error;
    }
  };
  const engineOf = ({ replicas: [{ state }] }: Routed): EngineRecord | undefined => table.engine(state.engine);

  return {
    joinVersion,
    async answer(question, request, reply) {
      const { path, body, asked, bytes, present } = question;
      const first = await choose(request, reply, asked);
      const admission = await admit(question, first, request);
      if (admission !== undefined) void reply.headers(admission.headers);
      // Decided again without a pause before `answer` counts this request, so that requests that come at once see each other.
      const now = decideRoute(table.view(), asked);
      const routed = now.kind === "route" && now.engineModel === first.engineModel ? now : first;
      requestSpan()?.setAttributes({
        "gen_ai.request.model": body.model,
        "gen_ai.response.model": routed.model,
        "loraline.stream": body["stream"] === true,
      });
      const system = systemFor(path, body, routed.version, request.headers[systemHeader]);
      if (system !== undefined) void reply.header(systemHeader, "applied");
      await asker.answer({ path, body: withSystem(body, system), bytes, routed, admission, request, reply, present });
    },
    [Symbol.asyncDispose]: () => asker[Symbol.asyncDispose](),
  };
}

export const inferenceRoutes =
  ({ bodyLimitBytes }: GatewayContext, inference: Inference) =>
  (app: FastifyInstance): void => {
    app.post("/moderations", async () => {
      throw badRequest(
        "unsupported",
        "/v1/moderations is not offered: no model here judges texts. Ask a moderation service, or a model of your own at /v1/chat/completions.",
      );
    });
    for (const path of inferencePaths) {
      const config = { join: inference.joinVersion, sampled: true } as const;
      app.post(`/${path}`, { bodyLimit: bodyLimitBytes, config }, async (request, reply) => {
        const body = bodyOf(request.body);
        await inference.answer({ path, body, asked: askedOf(request, body), bytes: bytesOf(request) }, request, reply);
        return reply;
      });
    }
  };

/** How a version is chosen for this request. */
export const askedOf = ({ caller: { tenant, by }, headers }: FastifyRequest, body: InferenceBody): RouteRequest => ({
  tenant,
  model: body.model,
  sticky: () => stickyKeyOf({ header: headers["x-loraline-sticky"], by, body }),
});

function bodyOf(raw: unknown): InferenceBody {
  if (typeof raw !== "object" || raw === null || Array.isArray(raw)) throw badRequest("invalid_body", "The body must be a JSON object.");
  const { model } = raw as { model?: unknown };
  if (typeof model !== "string" || model === "") throw badRequest("missing_model", "model: say which model is to answer.", "model");
  return raw as InferenceBody;
}
