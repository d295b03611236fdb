/** When a run needs no tokens any more, and which errors are its outcome. */
import type { Bus } from "@loraline/bus";
import { buckets, type EventAddress, runCancelled, runKey, runRejected, runTokenized, terminalPhases } from "@loraline/contracts";

/** Errors that reject the run: the user's base or template is wrong, and no server is at fault. */
export const rejectingCodes: ReadonlySet<string> = new Set([
  "BASE_FILES_MISSING",
  "BASE_MISSING",
  "TEMPLATE_MISSING",
  "TEMPLATE_UNSUPPORTED",
  "PAD_TOKEN_MISSING",
  "EOS_TOKEN_MISSING",
  "TOKENIZER_INVALID",
]);

/** Whether the run has its tokens already, has ended, or is to be cancelled: nothing is to be done for it. */
export async function needsNoTokens(bus: Bus, at: EventAddress): Promise<boolean> {
  const state = (await (await bus.bucket(buckets.runs)).get(runKey(at)))?.value;
  if (state !== undefined && (state.cancelRequested || state.tokens !== null || terminalPhases.has(state.phase))) return true;
  // The state is folded from the events and may lag behind them.
  const ends = await Promise.all([runTokenized, runRejected, runCancelled].map((event) => bus.last(event, at)));
  return ends.some((end) => end !== undefined);
}
