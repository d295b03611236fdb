/** Requests to an engine that may be scaled to zero: they wait until a replica can answer, instead of failing. */
import { setTimeout as sleep } from "node:timers/promises";
import type { FastifyReply } from "fastify";
import type { GatewayContext } from "../../context.ts";
import { decideRoute, type RouteDecision, type RouteRequest } from "../decide-route.ts";

/** Requests that wait at this gateway, of one tenant and of all. More of them get the 503 at once. */
const most = { ofTenant: 200, ofAll: 1000 };
const lookEveryMs = 100;
/** A replica that is ready may be told of before what it holds, or gets a version that was asked for by name. */
const settledMs = 10_000;

type Unavailable = Extract<RouteDecision, { kind: "unavailable" }>;

/** @returns waits and decides again; resolves with what could not be routed to the end of the wait, with the wait that is still expected. */
export function createEngineWait({ table, traffic, closing }: Pick<GatewayContext, "table" | "traffic" | "closing">) {
  const waiting = new Map<string, number>();
  let all = 0;
  return async (asked: RouteRequest, unavailable: Unavailable, reply: FastifyReply): Promise<RouteDecision> => {
    const { tenant } = asked;
    const mine = waiting.get(tenant) ?? 0;
    if (unavailable.asleep.length === 0 || mine >= most.ofTenant || all >= most.ofAll) return unavailable;
    const engines = unavailable.asleep.map(({ engine }) => engine);
    const waitMs = Math.min(...unavailable.asleep.map(({ wake }) => wake?.waitSeconds ?? 0)) * 1000;
    const leaving = new AbortController();
    const leave = (): void => leaving.abort();
    if (reply.raw.closed) leave();
    reply.raw.once("close", leave);
    const signal = AbortSignal.any([closing, leaving.signal]);
    const places = engines.map((engine) => traffic.wait(engine));
    waiting.set(tenant, mine + 1);
    all += 1;
    try {
      let decision: RouteDecision = unavailable;
      let readyAt: number | undefined;
      for (const until = performance.now() + waitMs; performance.now() < until; decision = decideRoute(table.view(), asked)) {
        if (decision.kind !== "unavailable") return decision;
        if (decision.asleep.length === 0) {
          readyAt ??= performance.now();
          if (performance.now() - readyAt > settledMs) return decision;
        } else readyAt = undefined;
        // An engine may get a replica and lose it again while others wait.
        for (const engine of engines) table.wanted(engine);
        try {
          await sleep(lookEveryMs, undefined, { signal });
        } catch {
          return decision;
        }
      }
      if (decision.kind !== "unavailable") return decision;
      for (const engine of engines) table.waitedInVain(engine);
      return { ...decision, reason: `${decision.reason} The request has waited for it for ${waitMs / 1000} s.` };
    } finally {
      reply.raw.off("close", leave);
      for (const place of places) place[Symbol.dispose]();
      all -= 1;
      const left = (waiting.get(tenant) ?? 1) - 1;
      if (left > 0) waiting.set(tenant, left);
      else waiting.delete(tenant);
    }
  };
}
