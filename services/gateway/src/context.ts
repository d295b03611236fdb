/** What every route of the gateway works with. */
import type { Bus } from "@loraline/bus";
import type { Scope, SpanView } from "@loraline/contracts";
import type { Objects } from "@loraline/objects";
import type { Log, Telemetry } from "@loraline/runtime";
import type { Caller, KeyCheck } from "./access/auth.ts";
import type { RouteDecision } from "./inference/decide-route.ts";
import type { Limits } from "./access/limits.ts";
import type { Metrics } from "./metrics.ts";
import type { RoutingTable } from "./inference/routing-table.ts";
import type { StateReader } from "./state-reader.ts";
import type { JoinTrace } from "./tracing.ts";
import type { Traffic } from "./inference/traffic.ts";
import type { Usage } from "./access/usage.ts";

export interface GatewayContext {
  bus: Bus;
  objects: Objects;
  log: Log;
  telemetry: Telemetry;
  state: StateReader;
  table: RoutingTable;
  traffic: Traffic;
  limits: Limits;
  usage: Usage;
  metrics: Metrics;
  keysOf: KeyCheck["keysOf"];
  /** Spans of one trace, oldest first; empty when none are kept here. */
  readTrace: (traceId: string) => Promise<SpanView[]>;
  uploadLimitBytes: number;
  /** Of a question to a model. */
  bodyLimitBytes: number;
  /** What engines ask for as a key; absent: nothing. */
  engineKey: string | undefined;
  /** Aborted when the gateway gives up on requests that outlived its shutdown. */
  signal: AbortSignal;
}

declare module "fastify" {
  interface FastifyRequest {
    /** Set by the key check on every route below /v1. */
    caller: Caller;
    /** What the trace rules of inference found out; the handler keeps to it. */
    routed: RouteDecision | null;
  }
  interface FastifyContextConfig {
    /** Any of these lets a caller in. Every route below /v1 has it. */
    scope?: readonly Scope[];
    /** Without a `traceparent` of its own, only a share of the requests gets a span. */
    sampled?: boolean;
    /** Which trace the request's span joins when there is more to say than its own `traceparent`. */
    join?: JoinTrace;
  }
}
