/** Follows the canaries: reads what the gateways count, and writes what `decideCanary` decides. */
import type { KvBucket } from "@loraline/bus";
import { type AdapterState, buckets, everyTraffic, type ReplicaState, type TrafficState } from "@loraline/contracts";
import { type AdapterEventDeps, publishLinesAfter } from "./adapter-events.ts";
import { isMove, lastLine } from "./history-lines.ts";
import { type CanaryDecision, decideCanary } from "./decide-canary.ts";
import { provenOn, readyReplicas } from "../versions/bucket-replicas.ts";

/** What a gateway counted before it ended is remembered for this long. In a step that takes longer, other gateways have to count more. */
const rememberedMs = 60 * 60_000;

export interface Canaries {
  /** To be called with every change of an adapter. */
  onAdapter(key: string, state: AdapterState | undefined): void;
  /** Does what is due for one adapter: at most one compare-and-set, then its events. May be called at any time. */
  move(key: string): Promise<void>;
  /** `follower` is called with the key of an adapter when `move` has something to do for it. */
  onDue(follower: (key: string) => void): void;
}

interface CanaryDeps extends AdapterEventDeps {
  adapters: Pick<KvBucket<AdapterState>, "change">;
  /** Replicas of the adapter's engine. They must be known already, or every canary would seem to be proven nowhere. */
  replicas: (of: AdapterState) => Iterable<ReplicaState>;
  /** How often canaries are looked at although no report came, ms; at most a second. */
  resyncMs: number;
  signal: AbortSignal;
}

/** Resolves when it knows what gateways have counted. Ends with the signal. */
export async function createCanaries(deps: CanaryDeps): Promise<Canaries> {
  const { bus, adapters, replicas, log, telemetry, resyncMs, signal } = deps;
  const followers: ((key: string) => void)[] = [];
  const due = (key: string): void => {
    for (const follower of followers) follower(key);
  };
  const reports = new Map<string, TrafficState>();
  /** Adapters with a canary under way. */
  const states = new Map<string, AdapterState>();

  const decide = (state: AdapterState): CanaryDecision => {
    const now = Date.now();
    const ready = readyReplicas(state.engine, replicas(state), now);
    return decideCanary(state, { traffic: [...reports.values()], provenOn: (version) => provenOn(version, ready), now });
  };
  const look = (): void => {
    for (const [key, state] of states) if (decide(state).kind !== "wait") due(key);
  };

  const watched = Promise.withResolvers<void>();
  const traffic = await bus.bucket(buckets.traffic);
  await traffic.watch({
    filter: everyTraffic.canary,
    signal,
    onChange(gateway, report) {
      // What a gateway counted stays counted when it is gone.
      if (report !== undefined) reports.set(gateway, report);
      for (const [key, { at }] of reports) if (Date.now() - Date.parse(at) > rememberedMs) reports.delete(key);
      look();
    },
    onReady: watched.resolve,
  });
  await watched.promise;
  // Time passes, and replicas vanish, without a report.
  const timer = setInterval(look, Math.min(resyncMs, 1000));
  signal.addEventListener("abort", () => clearInterval(timer), { once: true });

  return {
    onDue(follower) {
      followers.push(follower);
    },
    onAdapter(key, state) {
      if (!state?.canary) {
        states.delete(key);
        return;
      }
      states.set(key, state);
      if (decide(state).kind !== "wait") due(key);
    },
    async move(key) {
      if (!states.has(key)) return;
      let decision: CanaryDecision | undefined;
      let known = 0;
      const state = await adapters.change(key, (current) => {
        known = current === undefined ? 0 : lastLine(current);
        decision = current && decide(current);
        return decision === undefined || decision.kind === "wait" ? undefined : decision.state;
      });
      if (state === undefined || decision === undefined || decision.kind === "wait" || decision.kind === "note") return;
      const reason = state.history.findLast((line) => (line.n ?? 0) > known && isMove(line))?.reason;
      log.info({ adapter: key, canary: state.canary ?? null, reason }, `canary: ${decision.kind}`);
      const attributes = { "loraline.tenant": state.tenant, "loraline.adapter": state.adapter, "loraline.canary": decision.kind };
      await telemetry.span("canary", { attributes }, async () => {
        await publishLinesAfter(state, known, deps);
      });
    },
  };
}
