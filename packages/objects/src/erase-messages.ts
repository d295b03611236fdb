/** Removes messages of a stream so that their bytes are nowhere on the server's disk any more. */
import { JetStreamApiError, type JetStreamManager, type StoredMsg } from "@nats-io/jetstream";

/** "no message found", by either of the two requests. Codes: https://github.com/nats-io/nats-server/blob/main/server/errors.json */
const isGone = (error: unknown): boolean => error instanceof JetStreamApiError && (error.code === 10037 || error.code === 10043);

/**
 * Overwrites a message, and removes it. (A purge only marks its place as free, and the bytes stay in the server's files.) It may be gone
 * already.
 */
export async function eraseMessage(jsm: JetStreamManager, stream: string, seq: number): Promise<void> {
  await jsm.streams.deleteMessage(stream, seq, true).catch((error: unknown) => {
    if (!isGone(error)) throw error;
  });
}

/**
 * Does so with every message whose subject matches `filter` (NATS wildcards) and for which `doomed` says so. What was begun is finished by
 * doing it again.
 *
 * @returns how many it removed.
 */
export async function eraseMessages(
  jsm: JetStreamManager,
  stream: string,
  filter: string,
  doomed: (message: { subject: string; seq: number }) => boolean = () => true,
): Promise<number> {
  let erased = 0;
  for await (const message of messagesOf(jsm, stream, filter)) {
    if (!doomed(message)) continue;
    await eraseMessage(jsm, stream, message.seq);
    erased++;
  }
  return erased;
}

/** The messages of a stream whose subject matches `filter` (NATS wildcards), oldest first. */
export async function* messagesOf(jsm: JetStreamManager, stream: string, filter: string): AsyncGenerator<StoredMsg, void, undefined> {
  for (let seq = 1; ;) {
    const next = { seq, next_by_subj: filter };
    const message = await jsm.streams.getMessage(stream, next).catch((error: unknown) => {
      if (isGone(error)) return null;
      throw error;
    });
    if (message === null) return;
    yield message;
    seq = message.seq + 1;
  }
}
