/** The trained adapter on its way to the object store: files, manifest, evidence, event. Each exists only when all before it do. */
import { runTrained, type TokenManifest } from "@loraline/contracts";
import type { KeepTryingOptions } from "@loraline/runtime";
import { type AttemptContext, isCancelRequested, waitTeller } from "./attempt-context.ts";
import type { End } from "./decide-end.ts";
import { putAdapter } from "./put-adapter.ts";
import type { SentAhead } from "./send-ahead.ts";

const patienceMs = 30 * 60_000;

/**
 * What was trained exists nowhere else. A store that is away or full is therefore waited for as long as the attempt may live, also when
 * the attempt is asked to stop; it is given up only when the run was cancelled.
 */
export async function storeAdapter(
  attempt: AttemptContext,
  tokens: TokenManifest,
  { result, lastStepAt, ahead }: { result: Extract<End, { kind: "trained" }>["result"]; lastStepAt: string; ahead?: SentAhead | undefined },
): Promise<void> {
  const { spec, objects, work, stop, outbox, telemetry, log } = attempt;
  const { adapter: trained } = result;
  const patience: KeepTryingOptions = {
    log,
    patienceMs,
    onWait: waitTeller(attempt, "store"),
    async givenUp() {
      const cancelled = stop.aborted && (await isCancelRequested(attempt).catch(() => false));
      return cancelled ? { code: "PREEMPTED", message: "the run was cancelled" } : undefined;
    },
  };
  const isIt = ahead !== undefined && digestsOf(ahead.adapter) === digestsOf(trained);
  const proven = isIt ? { ...result, probes: ahead.probes, environment: ahead.environment } : result;
  const stored = await telemetry.span("store adapter", {}, () =>
    putAdapter({ spec, objects, work, tokens, folder: "adapter", written: trained, result: proven, patience }),
  );
  await outbox.send(runTrained, {
    attempt: spec.attempt,
    ...stored,
    rank: trained.rank,
    targetModules: trained.target_modules,
    parameters: trained.parameters,
    steps: result.steps,
    trainLoss: result.train_loss,
    trainedTokens: result.tokens_seen,
    tokensPerSecond: result.train_tokens_per_second,
    evaluation: result.evaluation,
    lastStepAt,
  });
  log.info({ adapter: stored.adapter.digest }, "trained");
}

const digestsOf = ({ files }: { files: readonly { path: string; sha256: string }[] }): string =>
  files.map(({ path, sha256 }) => `${path} ${sha256}`).join("\n");
