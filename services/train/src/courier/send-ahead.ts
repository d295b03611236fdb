/**
 * The adapter, sent ahead: it is stored and told while the trainer still evaluates it, so that replicas load and prove it meanwhile. Whether
 * anybody may ask it is decided as always, after `run.trained`. Nothing depends on this: what fails here is done again at the end.
 */
import { dirname, join } from "node:path";
import { runAdapterWritten, type TokenManifest, writtenCheckpoint } from "@loraline/contracts";
import type { z } from "zod";
import { readTrainerJson } from "../attempt/trainer-files.ts";
import { type AttemptContext, eventKeyOf } from "./attempt-context.ts";
import { putAdapter } from "./put-adapter.ts";

/** What was recorded of the adapter that was sent ahead. */
export type SentAhead = z.output<typeof writtenCheckpoint>;

interface SendAhead {
  /** To be called when the trainer says that the adapter is complete on disk. */
  begin(this: void): void;
  /** undefined: none was sent. The evidence of the run must have the same, since replicas may have proven the adapter by it. */
  recorded(): Promise<SentAhead | undefined>;
}

const patienceMs = 5000;

export function createSendAhead(attempt: AttemptContext, tokens: Pick<TokenManifest, "base" | "templateDigest">): SendAhead {
  const { spec, bus, objects, work, at, traceparent, log } = attempt;
  const failed = (error: unknown): undefined => {
    log.warn({ err: error }, "the adapter is not sent ahead");
    return undefined;
  };
  let record: Promise<SentAhead | undefined> = Promise.resolve(undefined);

  const send = async (written: SentAhead): Promise<void> => {
    const patience = {
      log,
      patienceMs,
      givenUp: async () => (attempt.stop.aborted ? { code: "PREEMPTED", message: "asked to stop" } : undefined),
    };
    const stored = await putAdapter({
      spec,
      objects,
      work,
      tokens,
      folder: "adapter",
      written: written.adapter,
      result: written,
      patience,
    });
    // Not by the outbox: nothing has to wait for it.
    const key = `${eventKeyOf(attempt)}/${stored.evidence.digest}`;
    await bus.publish(runAdapterWritten, at, { attempt: spec.attempt, ...stored }, { key, traceparent });
  };

  return {
    begin() {
      record = readTrainerJson(join(work, "adapter.json"), dirname(work), writtenCheckpoint).catch(failed);
      void record.then((written) => written && send(written)).catch(failed);
    },
    recorded: () => record,
  };
}
