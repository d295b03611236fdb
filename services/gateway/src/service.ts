/** The gateway: the HTTP API. */
import { randomFillSync } from "node:crypto";
import { tmpdir } from "node:os";
import cors from "@fastify/cors";
import multipart from "@fastify/multipart";
import type { Bus } from "@loraline/bus";
import {
  buckets,
  type EventAddress,
  type EventDef,
  type HttpRoute,
  httpRoutes,
  openApi,
  type QuotaSettings,
  type Scope,
  type SpanView,
  version,
} from "@loraline/contracts";
import type { Objects } from "@loraline/objects";
import { type Log, PermanentError, RetryLaterError, type Telemetry } from "@loraline/runtime";
import Fastify, { LogController, type FastifyBaseLogger, type FastifyInstance, type FastifyReply, type FastifyRequest } from "fastify";
import { ulid } from "ulid";
import { addAdapterRoutes, type ImportOptions } from "./adapters/add-adapter.ts";
import { type Caller, checkScope, createKeyCheck } from "./access/auth.ts";
import { boundNameOf, checkModel } from "./access/decide-models.ts";
import type { GatewayContext, KeyLifetimes } from "./context.ts";
import { createBodies, holdBodies, weightOf } from "./access/bodies.ts";
import { badRequest, errorBodyOf, errorReplyOf } from "./errors.ts";
import { datasetRoutes } from "./jobs/datasets.ts";
import { fileRoutes } from "./jobs/files.ts";
import { auditRoutes } from "./access/audit.ts";
import { adminRoutes } from "./access/admin-api.ts";
import { partUploadRoutes } from "./jobs/part-uploads.ts";
import { fineTuningRoutes } from "./jobs/fine-tuning.ts";
import { createInference, inferenceRoutes } from "./inference/inference.ts";
import { responseRoutes } from "./responses/responses.ts";
import { cutOffSlowBodies, type SlowBodyLimits, slowBodyLimits } from "./access/slow-bodies.ts";
import { createChanges } from "./console/changes.ts";
import { liveRoute } from "./console/live-route.ts";
import { checkOrigin, sessionCookieOf } from "./console/session-cookie.ts";
import { sessionRoutes, signInRoute } from "./console/session-routes.ts";
import { oidcSignIn, type OidcSignInOptions } from "./console/oidc-sign-in.ts";
import { createSeal } from "./console/seal.ts";
import { createIssuer } from "./console/issuer.ts";
import { createSessions } from "./console/sessions.ts";
import { builtConsole, consoleRoutes } from "./console/static-files.ts";
import { createServerClock } from "./access/server-clock.ts";
import { createCacheSalt } from "./inference/engines/cache-salt.ts";
import { createLimits } from "./access/limits.ts";
import { createGatewayQuotas, type GatewayQuotas } from "./access/quotas.ts";
import { createTurns } from "./access/turns.ts";
import { createUploads, type UploadSpeed } from "./access/uploads.ts";
import { createDownloads } from "./storage/downloads.ts";
import { deleteVersionRoutes } from "./adapters/delete-version.ts";
import { ownAdapterName } from "./openai-ids.ts";
import { loralineRoutes } from "./adapters/loraline-api.ts";
import { takeAdapterRoutes } from "./adapters/take-adapter.ts";
import { createGatewayMetrics } from "./metrics.ts";
import { type AccessLog, followAnswers } from "./access-log.ts";
import { modelRoutes } from "./inference/models.ts";
import { createTokenCheck, type OidcOptions } from "./access/oidc.ts";
import { createRoutingTable } from "./inference/routing-table.ts";
import { storageRoutes } from "./storage/storage.ts";
import { deletionRoutes } from "./storage/deletions.ts";
import { followTls, readTls, type TlsFiles } from "./server-tls.ts";
import { createStateReader } from "./state-reader.ts";
import { createTraceAllowance, traced } from "./tracing.ts";
import { createTraffic } from "./inference/traffic.ts";
import { createUsage } from "./access/usage.ts";

export interface GatewayServiceOptions {
  bus: Bus;
  objects: Objects;
  log: Log;
  telemetry: Telemetry;
  host: string;
  /** The port; 0: any free one. */
  port: number;
  /** Reads the spans of one trace, oldest first. Absent: traces are stored elsewhere, and the API shows none. */
  readTrace?: (traceId: string) => Promise<SpanView[]>;
  /** Largest file that may be uploaded, in bytes. Default 1 GiB. */
  uploadLimitBytes?: number;
  /** Where uploads are until they are complete. Default: the system's temporary directory. */
  spoolDir?: string;
  /** Largest JSON body of a question to a model, in bytes. Default 32 MiB, which holds a few images. Other bodies: at most 512 KiB. */
  bodyLimitBytes?: number;
  /** The slowest speed of bodies. Default: 4 KiB a second, after the first minute. */
  slowBodies?: SlowBodyLimits;
  /** The slowest speed of uploads where all places are taken. Default: 64 KiB a second, after half a minute. */
  uploadSpeed?: UploadSpeed;
  /** Which addresses agents may say of their replicas (`createReplicaUrlJudge`). Default: of this machine and of private networks. */
  replicaHosts?: readonly string[] | undefined;
  /** Origins of web pages that may call the API from browsers: `https://app.example.com`, or `*` for all. Default: none. */
  corsOrigins?: readonly string[] | undefined;
  /** People may sign in to the console at the issuer. Its tokens must be accepted: `oidc`. */
  oidcSignIn?: OidcSignInOptions | undefined;
  /** The console's built files. Default: where `make setup` builds them. */
  consoleDir?: string;
  /**
   * A secret of the installation, the same for all its gateways: keeps tenants apart in the engines' prefix caches, and signs the cookies of
   * sessions. Default: a new one at each start.
   */
  secret?: string | undefined;
  /** The key with which engines were started (VLLM_API_KEY). */
  engineKey?: string | undefined;
  /** For benchmarks: replicas are chosen at random instead of by affinity and load. */
  routeAtRandom?: boolean;
  /** How long requests in flight may go on after shutdown began. Default 10 s. */
  drainMs?: number;
  /** Tokens of this issuer are accepted beside keys. */
  oidc?: OidcOptions | undefined;
  /** Default: keys may live for ever, and those of the issuer's admins for 90 days. */
  keyLifetimes?: Partial<KeyLifetimes> | undefined;
  /** The API is served by https, with these files. Absent: http. */
  tls?: TlsFiles | undefined;
  /** Which answers are logged. Default: all. */
  accessLog?: AccessLog | undefined;
  /** What the operator grants tenants. Default: every quota's own default. */
  quotas?: QuotaSettings;
  /** Tenants whose own NATS clients give commands, which the gateway takes at the door. Default: none. */
  natsTenants?: readonly string[];
  /** How adapters that were trained elsewhere are fetched. */
  imports?: ImportOptions;
  /** Share, from 0 to 1, of the chats without a `traceparent` that get a trace. Default 1. */
  chatTraceShare?: number | undefined;
  /** Chats and reading requests of one tenant that get a span because they bring a `traceparent`. Default: all. */
  tracesPerMinute?: number | undefined;
}

export interface Gateway extends AsyncDisposable {
  readonly url: string;
  /** All routes, each with the scopes of which a caller needs one; none: no key is needed. */
  readonly routes: readonly Route[];
}

export interface Route {
  method: string;
  url: string;
  scope: readonly Scope[];
}

/** Random numbers from 0 to 1 for ids, from a buffer of random bytes: the library's own source takes longer than the rest of a request. */
const random = ((): (() => number) => {
  const bytes = new Uint8Array(4096);
  let next = bytes.length;
  return () => {
    if (next === bytes.length) {
      randomFillSync(bytes);
      next = 0;
    }
    return (bytes[next++] ?? 0) / 256;
  };
})();

/** Most bytes of a JSON body on routes other than inference: it must fit into a NATS message. */
const largestCommandBytes = 512 * 1024;
/** Most objects, lists and members in a JSON body. Each needs 50 bytes of memory or more, so a body of many needs a hundred times its size. */
const mostJsonValues = 500_000;

/** Bytes of one tenant's JSON bodies in memory, or twice as many as one of them may have. */
const leastBodiesBytes = 64 * 1024 ** 2;

/** How long a refused upload is still read, so that its sender gets the reason instead of a broken connection. */
const lingerMs = 30_000;

/**
 * Starts the gateway; it listens when the promise resolves. Disposing stops new requests, lets those in flight end for
 * `drainMs`, then aborts them.
 * @throws PermanentError PORT_TAKEN, ADDRESS_UNUSABLE.
 */
export async function createGatewayService(options: GatewayServiceOptions): Promise<Gateway> {
  const { bus, objects, log, telemetry, host, port, drainMs = 10_000 } = options;
  const {
    uploadLimitBytes = 1024 ** 3,
    spoolDir = tmpdir(),
    bodyLimitBytes = 32 * 1024 ** 2,
    readTrace = () => Promise.resolve([]),
    chatTraceShare = 1,
    tracesPerMinute = Infinity,
  } = options;
  const mayJoin = createTraceAllowance(tracesPerMinute);
  const watching = new AbortController();
  const abandoning = new AbortController();
  /** What could go on for hours ends when the gateway begins to shut down. */
  const endStreams = new AbortController();
  const owned = new AsyncDisposableStack();
  owned.defer(() => {
    watching.abort();
    abandoning.abort();
  });
  try {
    const checkToken = options.oidc === undefined ? undefined : createTokenCheck(options.oidc);
    const checkKey = await createKeyCheck({ bus, signal: watching.signal, checkToken });
    const atRandom = options.routeAtRandom === true ? Math.random : undefined;
    const table = await createRoutingTable({ bus, signal: watching.signal, random: atRandom, replicaHosts: options.replicaHosts });
    const traffic = owned.use(await createTraffic({ bus, log, table }));
    const { gateway } = traffic;
    const metrics = createGatewayMetrics(telemetry.metrics);
    const turns = owned.use(createTurns());
    metrics.waitingForTurn(turns.waiting);
    const clock = owned.use(await createServerClock({ bucket: await bus.bucket(buckets.budgets), log }));
    const limits = owned.use(await createLimits({ bus, log, gateway, signal: watching.signal, now: clock.now }));
    const quotas = await createGatewayQuotas({ bus, limits, settings: options.quotas ?? {} });
    const admit = (event: EventDef, { tenant }: EventAddress) => quotas.admitEvent(tenant, event);
    for (const tenant of options.natsTenants ?? []) owned.use(bus.takeCommands({ tenant, admit }));
    const uploads = owned.use(await createUploads({ bus, quotasOf: quotas.of, log, gateway, now: clock.now, speed: options.uploadSpeed }));
    const state = await createStateReader({ bus });
    const context: GatewayContext = {
      bus: { ...bus, publish: admitted(bus, quotas) },
      objects,
      log,
      telemetry,
      state,
      table,
      traffic,
      limits,
      quotas,
      uploads,
      downloads: createDownloads(),
      usage: owned.use(await createUsage({ bus, log, gateway })),
      metrics,
      keysOf: checkKey.keysOf,
      readTrace,
      keyLifetimes: { oidcDays: 90, ...options.keyLifetimes },
      uploadLimitBytes,
      spoolDir,
      bodyLimitBytes,
      cacheSalt: createCacheSalt(options.secret),
      engineKey: options.engineKey,
      closing: endStreams.signal,
      signal: abandoning.signal,
    };
    metrics.engines(() => context.table.engines());
    metrics.waitingForEngines(() => traffic.waiting);
    const inference = owned.use(createInference(context));
    const partUploads = await partUploadRoutes(context);
    const responses = await responseRoutes(context, inference);
    const loraline = await loralineRoutes(context);
    const takeAdapter = await takeAdapterRoutes(context);
    const versionDeletion = await deleteVersionRoutes(context);
    const deletions = await deletionRoutes(context);
    const admin = await adminRoutes(context);
    const seal = createSeal(options.secret);
    const issuer = options.oidcSignIn === undefined ? undefined : createIssuer(options.oidcSignIn);
    const sessions = await createSessions({ bus, checkKey, secret: options.secret, seal, issuer, log });
    const signInAtIssuer = oidcSignIn({ options: options.oidcSignIn, issuer, sessions, seal });
    const changes = owned.use(await createChanges({ bus }));
    const pages = await consoleRoutes(options.consoleDir ?? builtConsole);
    /** A key or token where one is given; else the session of a browser. */
    const checkCaller = async (request: FastifyRequest): Promise<Caller> => {
      const { authorization } = request.headers;
      const cookie = authorization === undefined ? sessionCookieOf(request) : undefined;
      if (cookie === undefined) return checkKey(authorization);
      checkOrigin(request);
      return sessions.callerOf(cookie);
    };
    const keys = await bus.bucket(buckets.keys);

    const loggerInstance: FastifyBaseLogger = log;
    const tls = options.tls === undefined ? undefined : await readTls(options.tls);
    const app = Fastify({
      // The type of a server depends on this option, and no route cares.
      ...(tls === undefined ? {} : ({ https: tls } as object)),
      loggerInstance,
      logController: new LogController({ disableRequestLogging: true }),
      bodyLimit: Math.min(bodyLimitBytes, largestCommandBytes),
      genReqId: () => ulid(undefined, random),
      // Not needed: no handler uses the request's own logger.
      childLoggerFactory: (logger) => logger,
      forceCloseConnections: "idle",
      return503OnClosing: false,
      routerOptions: { maxParamLength: 300 },
      frameworkErrors: (error, request, reply) => {
        request.failure = "bad_request";
        void (reply as FastifyReply).code(400).send(errorBodyOf(400, error.message, "bad_request"));
      },
      clientErrorHandler: (_error, socket) => {
        answers.malformed();
        const body = JSON.stringify(errorBodyOf(400, "The request is not valid HTTP.", "bad_request"));
        if (socket.writable) {
          socket.write(
            `HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`,
          );
        }
        socket.destroy();
      },
    });
    parseJsonBodies(app);
    const answers = followAnswers(app, { metrics, log, which: options.accessLog ?? "all" });
    cutOffSlowBodies(app, options.slowBodies ?? slowBodyLimits);
    await allowOrigins(app, options.corsOrigins ?? []);
    const known = collectRoutes(app);
    let draining = false;
    app.addHook("onRequest", async (request, reply) => {
      void reply.header("x-request-id", request.id);
      if (draining) throw new RetryLaterError("shutting_down", 1000, "The gateway is shutting down. Ask again.");
    });
    app.setErrorHandler((error, request, reply) => replyWithError(error, request, reply, log));
    app.setNotFoundHandler(async (request, reply) => {
      const path = request.url.split("?", 1)[0] ?? "";
      const allowed = known.methodsOf(path);
      request.failure = allowed.length === 0 ? "unknown_url" : "method_not_allowed";
      if (allowed.length === 0) {
        const message = `Unknown request URL: ${request.method} ${path}. Check the path and the /v1 in front of it.`;
        return reply.code(404).send(errorBodyOf(404, message, "unknown_url"));
      }
      const message = `${request.method} is not allowed here: ${path} takes ${allowed.join(", ")}.`;
      return reply
        .code(405)
        .header("allow", allowed.join(", "))
        .send(errorBodyOf(405, message, "method_not_allowed"));
    });

    app.get("/healthz", async () => ({ status: "ok", version }));
    app.get("/readyz", async (_request, reply) => {
      const reason = await busProblem(() => keys.get("readyz"));
      return reason === undefined ? { status: "ready" } : reply.code(503).send({ status: "not ready", reason });
    });

    let reference: string | undefined;
    app.get("/v1/loraline/openapi.json", async (_request, reply) => {
      reference ??= JSON.stringify(openApi());
      return reply.type("application/json").send(reference);
    });

    signInRoute(app, { sessions, issuer: options.oidcSignIn?.issuer ?? null });
    signInAtIssuer(app);
    pages(app);

    await app.register(
      async (v1) => {
        await v1.register(multipart, {
          // The gateway counts bytes itself, and refuses instead of truncating.
          limits: { fileSize: Number.POSITIVE_INFINITY, files: 1, fields: 20, fieldSize: 16 * 1024, parts: 30 },
        });
        v1.decorateRequest("caller");
        v1.decorateRequest("routed", null);
        v1.addHook("onRequest", async (request, reply) => {
          // A key that is known costs no wait.
          const { authorization } = request.headers;
          const caller = authorization === undefined ? checkCaller(request) : checkKey(authorization);
          request.caller = caller instanceof Promise ? await caller : caller;
          const { scopes = [], alsoNeeds = [] } = request.routeOptions.config.described ?? {};
          checkScope(request.caller, scopes);
          for (const scope of alsoNeeds) checkScope(request.caller, [scope]);
          // An open page follows changes for hours and costs next to nothing, so it takes no other request's turn.
          if (request.routeOptions.config.described === httpRoutes.followChanges) return;
          // Before the body is read, which is work, too.
          const turn = await turns.begin(request.caller.tenant);
          if (reply.raw.closed) turn[Symbol.dispose]();
          else reply.raw.once("close", () => turn[Symbol.dispose]());
        });
        holdBodies(v1, createBodies(Math.max(leastBodiesBytes, 2 * bodyLimitBytes)), bodyLimitBytes);
        v1.addHook("preHandler", async (request) => checkBound(request, context));
        v1.addHook("onRoute", (route) => {
          const { join, sampled = false } = route.config ?? {};
          route.handler = traced(telemetry, route.handler, { join, mayJoin, ...(sampled ? { share: chatTraceShare } : {}) });
        });
        for (const routes of [
          fileRoutes(context),
          partUploads,
          datasetRoutes(context),
          fineTuningRoutes(context),
          modelRoutes(context),
          versionDeletion,
          deletions,
          storageRoutes(context),
          inferenceRoutes(context, inference),
          responses,
          loraline,
          takeAdapter,
          addAdapterRoutes(context, options.imports ?? {}),
          admin,
          auditRoutes(context),
          sessionRoutes({ sessions }),
          liveRoute({ changes, checkCaller, signal: endStreams.signal }),
        ]) {
          routes(v1);
        }
      },
      { prefix: "/v1" },
    );

    const url = await listen(app, host, port);
    if (options.tls !== undefined) owned.use(followTls(app.server, options.tls, log));
    log.info({ url }, "gateway is listening");
    owned.defer(async () => {
      draining = true;
      endStreams.abort();
      const giveUp = setTimeout(() => {
        log.warn({ drainMs }, "requests outlived the shutdown; aborting them");
        abandoning.abort();
        app.server.closeAllConnections();
      }, drainMs);
      await app.close();
      clearTimeout(giveUp);
    });
    return { url, routes: known.routes, [Symbol.asyncDispose]: () => owned.disposeAsync() };
  } catch (error) {
    await owned.disposeAsync();
    throw error;
  }
}

/** Publishes what the tenant's quotas let in. */
const admitted =
  (bus: Bus, quotas: GatewayQuotas): Bus["publish"] =>
  async (event, at, data, options) => {
    await quotas.admitEvent(at.tenant, event);
    return bus.publish(event, at, data, options);
  };

/** Headers of answers that pages may read, beside those that every page may. */
const exposedHeaders = [
  "retry-after",
  "x-request-id",
  "x-loraline-version",
  "x-loraline-replica",
  "x-loraline-system",
  ...["requests", "tokens"].flatMap((kind) => ["limit", "remaining", "reset"].map((what) => `x-ratelimit-${what}-${kind}`)),
];

/** Lets pages of these origins call the API. Keys come in a header that pages set themselves, so browsers are never told to send credentials of their own. */
async function allowOrigins(app: FastifyInstance, origins: readonly string[]): Promise<void> {
  if (origins.length === 0) return;
  await app.register(cors, {
    origin: origins.includes("*") ? "*" : [...origins],
    methods: ["GET", "HEAD", "POST", "PUT", "DELETE"],
    exposedHeaders,
    maxAge: 600,
  });
}

/** Parses JSON bodies. An empty body counts as no body, because the Python SDK sends JSON's Content-Type without a body. */
function parseJsonBodies(app: FastifyInstance): void {
  app.removeAllContentTypeParsers();
  app.addContentTypeParser("application/json", { parseAs: "string" }, (request, body, done) => {
    const text = body.toString();
    if (text.trim() === "") return done(null, undefined);
    if (text.length > mostJsonValues && valuesIn(text) > mostJsonValues)
      return done(
        new PermanentError("body_too_large", `The body has more than ${mostJsonValues} values. Send fewer at once.`, { status: 413 }),
      );
    try {
      // Routes without a caller take small bodies only, which are not counted.
      (request.heldBody as typeof request.heldBody | undefined)?.settle(weightOf(text, valuesIn));
      return done(null, JSON.parse(text));
    } catch (error) {
      if (error instanceof RetryLaterError) return done(error);
      return done(badRequest("invalid_json", `The body is not valid JSON: ${(error as Error).message}.`));
    }
  });
}

/** Counts the values of a JSON text, never too few: commas and brackets inside of strings count, too. */
function valuesIn(json: string): number {
  let values = 0;
  for (let at = 0; at < json.length && values <= mostJsonValues; at++) {
    const char = json.charCodeAt(at);
    // , [ {
    if (char === 0x2c || char === 0x5b || char === 0x7b) values++;
  }
  return values;
}

/** Method and path of a route, with the same text for every spelling of a parameter. */
const routeKey = (method: string, path: string): string => `${method} ${path.replaceAll(/\{\w+\}|:\w+|\*/g, "{}")}`;

/**
 * Refuses a model or adapter that the caller's key is not bound to.
 * @throws PermanentError 403 `model_not_allowed`
 */
function checkBound(request: FastifyRequest, { table }: Pick<GatewayContext, "table">): void {
  const { caller, params, body, routeOptions } = request;
  if (caller.models === null) return;
  const { adapter, "*": inPath } = params as { adapter?: string; "*"?: string };
  switch (routeOptions.config.described?.bound) {
    case "free":
    case "handler":
      return;
    case "adapter":
      return checkModel(caller, ownAdapterName(caller.tenant, adapter ?? ""));
    case "model": {
      const model = inPath ?? (body as { model?: unknown } | null | undefined)?.model;
      // The handler refuses a request without a model.
      if (typeof model !== "string") return;
      const isBase = table.view().enginesOf(model).length > 0;
      return checkModel(caller, boundNameOf(model, { tenant: caller.tenant, isBase }));
    }
    default:
      throw new PermanentError("model_not_allowed", `The key "${caller.by}" is bound to models, and such keys may not use this route.`, {
        status: 403,
      });
  }
}

/**
 * Collects the registered routes, so that a wrong method and a wrong path get different answers, and gives each its entry in the table of
 * routes, which says whom it lets in.
 */
function collectRoutes(app: FastifyInstance): { methodsOf(path: string): string[]; routes: Route[] } {
  const routes: { pattern: RegExp; methods: string[] }[] = [];
  const listed: Route[] = [];
  const table = new Map(Object.values<HttpRoute>(httpRoutes).map((route) => [routeKey(route.method, route.path), route]));
  app.addHook("onRoute", (options) => {
    const { url, method } = options;
    for (const one of [method].flat()) {
      const described = table.get(routeKey(one === "HEAD" ? "GET" : one, url));
      if (described === undefined) throw new Error(`${one} ${url} has no entry in the table of routes (contracts/src/http/routes.ts)`);
      options.config = { ...options.config, described };
      listed.push({ method: one, url, scope: described.scopes });
    }
    const parts = url
      .split("/")
      .map((part) => (part.startsWith(":") ? "[^/]+" : part === "*" ? ".+" : part.replace(/[.+?^${}()|[\]\\]/g, "\\$&")));
    routes.push({ pattern: new RegExp(`^${parts.join("/")}/?$`), methods: [method].flat() });
  });
  return {
    routes: listed,
    methodsOf: (path) => [...new Set(routes.filter(({ pattern }) => pattern.test(path)).flatMap(({ methods }) => methods))].toSorted(),
  };
}

async function replyWithError(error: unknown, request: FastifyRequest, reply: FastifyReply, log: Log): Promise<FastifyReply> {
  const { status, body, retryAfterSeconds, headers } = errorReplyOf(error);
  request.failure = body.error.code ?? "other";
  const fields = { err: error, requestId: request.id, method: request.method, url: request.url, status };
  if (status >= 500 && status !== 503) log.error(fields, "request failed");
  else log.debug(fields, body.error.message);
  if (retryAfterSeconds !== undefined) void reply.header("retry-after", retryAfterSeconds);
  if (headers !== undefined) void reply.headers(headers);
  lingerOver(request);
  return reply.code(status).send(body);
}

/** Ends the connection of a refused body after a while: Node goes on reading it, and a sender could send without end. */
function lingerOver({ raw }: FastifyRequest): void {
  if (raw.complete) return;
  const timer = setTimeout(() => raw.socket.destroy(), lingerMs);
  timer.unref();
  raw.once("close", () => clearTimeout(timer));
}

async function busProblem(read: () => Promise<unknown>): Promise<string | undefined> {
  const timeout = new Promise<never>((_resolve, reject) => {
    setTimeout(() => reject(new Error("no answer within 1 s")), 1000).unref();
  });
  return Promise.race([read(), timeout]).then(
    () => undefined,
    (error: unknown) => `the message bus does not answer: ${(error as Error).message}`,
  );
}

async function listen(app: FastifyInstance, host: string, port: number): Promise<string> {
  try {
    return await app.listen({ host, port });
  } catch (error) {
    await app.close();
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === "EADDRINUSE") {
      throw new PermanentError("PORT_TAKEN", `port ${port} of ${host} is taken by another process. Stop it, or choose another port.`, {
        cause: error,
        param: "port",
      });
    }
    throw new PermanentError("ADDRESS_UNUSABLE", `cannot listen on ${host}:${port}: ${message}`, { cause: error, param: "host" });
  }
}
