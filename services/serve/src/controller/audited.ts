/** Commands that the controller carries out, each with its entry in the audit log. */
import type { Audit, HandlerContext, Received } from "@loraline/bus";
import { type AuditAction, type EventDef, streamOf } from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime";

/**
 * Makes a handler that records what came of the command. It is recorded before the message is acknowledged: where that fails, the message
 * is delivered again, the command changes nothing any more, and the entry is written with the same id.
 */
export const createAudited =
  (audit: Audit) =>
  <E extends EventDef>(action: AuditAction, handle: (received: Received<E>) => Promise<void>) =>
  async (received: Received<E>, { actor }: Pick<HandlerContext, "actor">): Promise<void> => {
    const { at, seq, event, data } = received as Received;
    // `by` is what the message says of its sender.
    const { by: _by, ...details } = data as Record<string, unknown>;
    const entry = { id: `${streamOf(event).name}/${seq}`, tenant: at.tenant, action, target: at.id, by: actor, details };
    try {
      await handle(received);
    } catch (error) {
      if (error instanceof PermanentError) await audit.record({ ...entry, outcome: "refused", code: error.code });
      throw error;
    }
    await audit.record({ ...entry, outcome: "done" });
  };
