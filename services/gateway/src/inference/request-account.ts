/** One request in metrics, in the tenant's usage and in its limits: counted once, whichever side ends it. */
import type { FastifyRequest } from "fastify";
import type { Admission } from "../access/limits.ts";
import type { GatewayContext } from "../context.ts";
import type { CountedModel, Routed } from "./decide-route.ts";
import type { TokenCount } from "./engine-answer.ts";

/** `ignored`: the client did something wrong or left before the first byte, which says nothing about the version. */
export type Outcome = "served" | "failed" | "ignored";

export interface RequestAccount {
  firstByte(): void;
  /**
   * Later calls do nothing.
   * @param tokens - the engine's count. `events`: it never came, and so many events were passed on, of which it is estimated. null: the
   *   engine computed nothing.
   */
  end(outcome: Outcome, tokens: TokenCount | { events: number } | null): void;
}

export function openAccount(
  { metrics, usage }: Pick<GatewayContext, "metrics" | "usage">,
  {
    routed,
    request,
    admission,
    bytes,
  }: { routed: Routed; request: Pick<FastifyRequest, "caller">; admission: Admission | undefined; bytes: number },
): RequestAccount {
  const { tenant } = request.caller;
  const named = countedAs(routed, tenant);
  const measured = metrics.model({ tenant, ...named, engineModel: routed.engineModel });
  const beganAt = performance.now();
  measured.begin();
  let over = false;
  return {
    firstByte: () => measured.firstByte(performance.now() - beganAt),
    end(outcome, tokens) {
      if (over) return;
      over = true;
      measured.end(outcome, performance.now() - beganAt);
      const isEstimate = tokens !== null && "events" in tokens;
      // What a broken answer has cost is not known, so the limit is charged with the most that it could.
      admission?.end(tokens === null ? 0 : isEstimate ? Number.POSITIVE_INFINITY : tokens.prompt + tokens.completion);
      if (outcome === "ignored" && tokens === null) return;
      const count = isEstimate ? estimated(bytes, tokens.events) : tokens;
      const { prompt: promptTokens, completion: completionTokens } = count ?? { prompt: 0, completion: 0 };
      measured.tokens(promptTokens, completionTokens);
      const failed = outcome === "failed";
      usage.count({ tenant, model: routed.model, ...named, promptTokens, completionTokens, failed, estimated: isEstimate });
    },
  };
}

/** Counts a request for a model that no replica could be asked for. */
export function countUnanswered(
  { metrics, usage }: Pick<GatewayContext, "metrics" | "usage">,
  tenant: string,
  counted: CountedModel,
): void {
  const { model, ...named } = counted;
  metrics.model({ tenant, ...named, engineModel: model }).unanswered();
  usage.count({ tenant, ...counted, promptTokens: 0, completionTokens: 0, failed: true, estimated: false });
}

/** What a request is counted under. */
export function countedAs({ version, model, replicas: [{ state }] }: Routed, tenant: string) {
  const adapter = version === null ? null : model.slice(tenant.length + 1, model.lastIndexOf("@"));
  return { base: state.base, adapter, version: version?.version ?? null };
}

/** Bytes of the body as it was sent. */
export const bytesOf = ({ headers, body }: Pick<FastifyRequest, "headers" | "body">): number =>
  Number(headers["content-length"]) || Buffer.byteLength(JSON.stringify(body));

const estimated = (bytes: number, events: number): TokenCount => ({
  prompt: Math.ceil(bytes / 4),
  completion: events,
});
