/** A request that was routed: asked of replica after replica, until one of them answers, and answered to the client. */
import { defaultEngineKind, engineKinds, type EngineRecord } from "@loraline/contracts";
import { PermanentError, RetryLaterError, traceparentOf } from "@loraline/runtime";
import type { FastifyReply, FastifyRequest } from "fastify";
import type { Admission } from "../access/limits.ts";
import type { GatewayContext } from "../context.ts";
import { requestSpan } from "../tracing.ts";
import { podOf, type ReplicaView, retryAfterOf } from "./decide-replicas.ts";
import { withSaltedPictures } from "./engines/cache-salt.ts";
import type { Routed } from "./decide-route.ts";
import { engineErrorOf, type Renaming, renameModel, type TokenCount, usageOf } from "./engine-answer.ts";
import { createEngineClient, type EngineAnswer, type RunningQuestion } from "./engine-client.ts";
import type { InferenceBody, InferencePath } from "./judge-inference-body.ts";
import { openAccount, type Outcome, type RequestAccount } from "./request-account.ts";
import { type Presentation, streamAnswer } from "./stream-answer.ts";

/** Engines queue; the SDKs themselves give up after ten minutes. */
const answerWithinMs = 10 * 60_000;
const connectWithinMs = 2000;
const maxTries = 3;
const maxErrorLength = 64 * 1024;

interface AdmittedRequest {
  path: InferencePath;
  body: InferenceBody;
  /** Of the body, without the version's system prompt. */
  bytes: number;
  present?: Presentation | undefined;
  routed: Routed;
  admission: Admission | undefined;
  request: FastifyRequest;
  reply: FastifyReply;
}

interface ReplicaAsker extends AsyncDisposable {
  /** Resolves when the answer is sent, or when a stream of it has begun, which then ends by itself. */
  answer(admitted: AdmittedRequest): Promise<void>;
}

/** What every try of one request shares. */
interface Exchange extends AdmittedRequest {
  account: RequestAccount;
  /** As it goes to an engine. */
  sent: { path: string; headers: Record<string, string>; body: string };
  renaming: Renaming;
  /** The client went away before the answer began. */
  clientLeft: boolean;
}

type Tried =
  /** The stream has begun. */
  | { kind: "streaming" }
  | { kind: "answered"; answer: EngineAnswer; outcome: Outcome; tokens: TokenCount | null }
  /** This replica gave no answer that counts; another one may. */
  | { kind: "unanswered"; why: string };

export function createReplicaAsker(context: GatewayContext): ReplicaAsker {
  const { table, traffic, metrics, log } = context;
  const engines = createEngineClient({ answerWithinMs, connectWithinMs, apiKey: context.engineKey });
  const running = new Set<RunningQuestion>();
  context.signal.addEventListener("abort", () => {
    for (const question of running) question.abort(new Error("the gateway is shutting down"));
  });

  const answer = async (admitted: AdmittedRequest): Promise<void> => {
    const { routed, admission, request, reply, bytes } = admitted;
    // "close" was emitted already: nothing would stop the engine, and a stream that nobody takes would never end.
    if (reply.raw.destroyed) {
      admission?.end(0);
      throw clientWentAway();
    }
    const exchange: Exchange = {
      ...admitted,
      account: openAccount(context, { routed, request, admission, bytes }),
      sent: engineRequestOf(admitted, context.cacheSalt),
      renaming: { from: routed.engineModel, to: routed.model },
      clientLeft: false,
    };
    // A single replica is asked again: an idle connection may have ended just when it was taken.
    const replicas = routed.replicas.length === 1 ? [routed.replicas[0], routed.replicas[0]] : routed.replicas.slice(0, maxTries);
    try {
      let why = "";
      for (const [index, replica] of replicas.entries()) {
        if (index > 0) {
          metrics.retried();
          log.warn({ model: routed.model, engineModel: routed.engineModel }, `trying elsewhere: ${why}`);
        }
        const tried = await tryReplica(exchange, replica, index === replicas.length - 1);
        if (tried.kind === "answered") await sendWhole(exchange, tried);
        if (tried.kind !== "unanswered") return;
        ({ why } = tried);
      }
      const { load } = table.view().replicasOf(routed.replicas[0].state.engine);
      throw new RetryLaterError("model_not_ready", retryAfterOf(load), `${routed.model} is answered by no replica now: ${why}`);
    } catch (error) {
      // A client that leaves before the first byte has still made the engine work; how much is not known.
      if (exchange.clientLeft) exchange.account.end("ignored", { events: 0 });
      else exchange.account.end("failed", null);
      throw error;
    }
  };

  /**
   * A replica that does not know the LoRA name is not proven, whatever the table says: it restarted, and its agent has not noticed yet.
   * @throws what no other replica could do better: the client left, the gateway shuts down, the engine took too long.
   */
  const tryReplica = async (exchange: Exchange, replica: ReplicaView, isLastTry: boolean): Promise<Tried> => {
    const { routed, reply, sent, renaming, account } = exchange;
    const { engine, replica: name, url } = replica.state;
    const span = requestSpan();
    const inTraffic = traffic.begin({ engineModel: routed.engineModel, engine, replica: name });
    const leave = table.begin(replica);
    const askedAt = performance.now();
    let streaming = false;
    /** The answer of this replica is the one that the client gets. */
    const beginAnswer = (): void => {
      span?.setAttributes({
        "loraline.replica": name,
        "loraline.engine.first_byte_ms": Math.round((performance.now() - askedAt) * 10) / 10,
      });
      account.firstByte();
      void reply
        .header("x-loraline-version", routed.version === null ? "base" : String(routed.version.version))
        .header("x-loraline-replica", name);
    };
    const over = (outcome: Outcome, tokens: TokenCount | undefined): void => {
      running.delete(question);
      reply.raw.off("close", onClientLeft);
      inTraffic.end(outcome, tokens);
      leave();
    };
    const question: RunningQuestion = engines.ask({
      ...sent,
      url,
      onAnswer(status, contentType) {
        inTraffic.firstByte();
        // Whether a 500 counts is decided by its text, which is still to come.
        if (!isFinal(status) || status === 500) return undefined;
        beginAnswer();
        if (status !== 200 || !contentType.startsWith("text/event-stream")) return undefined;
        streaming = true;
        return streamAnswer(reply, contentType, {
          renaming,
          hideUsage: exchange.present === undefined && !asksForUsage(exchange.body),
          present: exchange.present,
          onEnd(outcome, tokens) {
            over(outcome, "prompt" in tokens ? tokens : undefined);
            account.end(outcome, tokens);
          },
          onBroken(error) {
            log.warn({ err: error, model: routed.model, replica: name }, "the engine broke off while it answered");
            span?.setAttribute("loraline.engine.broke_off", true);
          },
        });
      },
    });
    running.add(question);
    const onClientLeft = (): void => {
      exchange.clientLeft = true;
      question.abort(new Error("the client went away"));
    };
    reply.raw.once("close", onClientLeft);

    let outcome: Outcome = "ignored";
    let tokens: TokenCount | null = null;
    try {
      const answered = await question.answer;
      if (streaming) return { kind: "streaming" };
      const { status, text } = answered;
      if (!isFinal(status) || isDead(table.engine(engine), status, text)) {
        if (isLastTry) outcome = "failed";
        const { message } = engineErrorOf(status, text.slice(0, maxErrorLength), renaming).error;
        return { kind: "unanswered", why: `replica ${podOf(replica.state)} answered ${status}: ${message}` };
      }
      if (status === 500) beginAnswer();
      outcome = status < 400 ? "served" : status >= 500 ? "failed" : "ignored";
      tokens = status < 400 ? (usageOf(text) ?? null) : null;
      return { kind: "answered", answer: answered, outcome, tokens };
    } catch (error) {
      if (exchange.clientLeft) throw clientWentAway();
      if (context.signal.aborted) throw new RetryLaterError("shutting_down", 1000, "The gateway is shutting down. Ask again.");
      const { code = "" } = error as NodeJS.ErrnoException;
      if (/TIMEOUT/.test(code) && !/CONNECT/.test(code)) {
        outcome = "failed";
        throw new PermanentError("engine_timeout", `The engine did not answer within ${answerWithinMs / 1000} s.`, { status: 504 });
      }
      if (isLastTry) outcome = "failed";
      // A pod that vanished leaves connections hanging: not every request should wait for that.
      table.unreachable(replica);
      return { kind: "unanswered", why: `replica ${podOf(replica.state)} cannot be reached: ${(error as Error).message}` };
    } finally {
      if (!streaming) over(outcome, tokens ?? undefined);
    }
  };

  return { answer, [Symbol.asyncDispose]: () => engines[Symbol.asyncDispose]() };
}

/** The request as engines get it, whichever replica is asked. */
function engineRequestOf({ path, body, routed, request }: AdmittedRequest, saltOf: GatewayContext["cacheSalt"]): Exchange["sent"] {
  const headers: Record<string, string> = { "content-type": "application/json", "x-request-id": request.id };
  const span = requestSpan();
  if (span !== undefined) headers["traceparent"] = traceparentOf(span);
  const { tracestate } = request.headers;
  if (typeof tracestate === "string") headers["tracestate"] = tracestate;
  // The engine counts the tokens of every answer, also for a client that did not ask for the count.
  const withUsage = body["stream"] === true && path !== "embeddings" ? { stream_options: { ...optionsOf(body), include_usage: true } } : {};
  const cache_salt = saltOf(request.caller.tenant, body["cache_salt"]);
  const withPictures = body["messages"] === undefined ? {} : { messages: withSaltedPictures(body["messages"], cache_salt) };
  const sent = { ...body, ...withPictures, model: routed.engineModel, cache_salt, ...withUsage };
  return { path: `v1/${path}`, headers, body: JSON.stringify(sent) };
}

/** Sends an answer that was collected: the engine's, or its error in OpenAI's shape. */
async function sendWhole(
  { request, reply, renaming, account, present }: Exchange,
  { answer, outcome, tokens }: Extract<Tried, { kind: "answered" }>,
): Promise<void> {
  const { status, contentType, text } = answer;
  if (status >= 400) {
    account.end(outcome, null);
    request.failure = status >= 500 ? "engine_failed" : "engine_refused";
    void reply.code(status).send(engineErrorOf(status, text.slice(0, maxErrorLength), renaming));
    return;
  }
  account.end(outcome, tokens ?? { events: 0 });
  const renamed = renameModel(text, renaming);
  if (present === undefined) void reply.code(status).header("content-type", contentType).send(renamed);
  else void reply.code(status).send(await present.whole(renamed));
}

const clientWentAway = (): PermanentError => new PermanentError("client_closed_request", "The client went away.", { status: 499 });

/** Other statuses say nothing about the request: the replica does not know the name (any more), is not ready, or asks us for another key. */
const isFinal = (status: number): boolean => ![401, 403, 404, 503].includes(status);

/** The engine's inner process died, before or while it computed this answer. Another replica may answer the same request. */
const isDead = (engine: EngineRecord | undefined, status: number, text: string): boolean =>
  status === 500 && engineKinds[engine?.kind ?? defaultEngineKind].isDead(text);

const optionsOf = (body: InferenceBody): Record<string, unknown> => {
  const options = body["stream_options"];
  return typeof options === "object" && options !== null ? { ...options } : {};
};
const asksForUsage = (body: InferenceBody): boolean => optionsOf(body)["include_usage"] === true;
