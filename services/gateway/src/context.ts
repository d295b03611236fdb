/** The parts of the gateway that every route uses. */
import type { Bus } from "@loraline/bus";
import type { HttpRoute, SpanView } from "@loraline/contracts";
import type { Objects } from "@loraline/objects";
import type { Log, Telemetry } from "@loraline/runtime";
import type { Caller, KeyCheck } from "./access/auth.ts";
import type { RouteDecision } from "./inference/decide-route.ts";
import type { Limits } from "./access/limits.ts";
import type { GatewayQuotas } from "./access/quotas.ts";
import type { Uploads } from "./access/uploads.ts";
import type { Downloads } from "./storage/downloads.ts";
import type { GatewayMetrics } from "./metrics.ts";
import type { RoutingTable } from "./inference/routing-table.ts";
import type { StateReader } from "./state-reader.ts";
import type { JoinTrace } from "./tracing.ts";
import type { Traffic } from "./inference/traffic.ts";
import type { Usage } from "./access/usage.ts";

/** Longest lifetimes, in days, of keys that are made over HTTP. */
export interface KeyLifetimes {
  /** Of every key. Absent: a key may never expire. */
  days?: number | undefined;
  /** Of a key that is made with a token of the issuer. */
  oidcDays: number;
}

export interface GatewayContext {
  bus: Bus;
  objects: Objects;
  log: Log;
  telemetry: Telemetry;
  state: StateReader;
  table: RoutingTable;
  traffic: Traffic;
  limits: Limits;
  quotas: GatewayQuotas;
  uploads: Uploads;
  downloads: Downloads;
  usage: Usage;
  metrics: GatewayMetrics;
  keysOf: KeyCheck["keysOf"];
  /** Spans of one trace, oldest first; empty when none are kept here. */
  readTrace: (traceId: string) => Promise<SpanView[]>;
  keyLifetimes: KeyLifetimes;
  uploadLimitBytes: number;
  /** Where uploads are until they are complete. */
  spoolDir: string;
  /** Of a question to a model. */
  bodyLimitBytes: number;
  /** The salt of the engines' prefix caches for a request of this tenant that says this `cache_salt`. */
  cacheSalt: (tenant: string, given: unknown) => string;
  /** What engines ask for as a key; absent: nothing. */
  engineKey: string | undefined;
  /** Aborted when the gateway takes no more requests. */
  closing: AbortSignal;
  /** Aborted when the gateway gives up on requests that outlived its shutdown. */
  signal: AbortSignal;
}

declare module "fastify" {
  interface FastifyRequest {
    /** Set by the key check on every route below /v1. */
    caller: Caller;
    /** The route that was decided when the trace was chosen; the handler uses the same one. */
    routed: RouteDecision | null;
    /** Code of the error that answers it; null: none. */
    failure: string | null;
  }
  interface FastifyContextConfig {
    /** The route's entry in the table of routes. Every route has one; `collectRoutes` sets it. */
    described?: HttpRoute;
    /** Whether only a share of the requests without a `traceparent` gets a span. */
    sampled?: boolean;
    /** Chooses the trace that the request's span joins, where its own `traceparent` does not decide that alone. */
    join?: JoinTrace;
  }
}
