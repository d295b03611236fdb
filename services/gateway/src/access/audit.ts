/** What the gateway does itself is in the audit log before it is done; and the log is read here. */
import {
  type Actor,
  type AuditAction,
  type AuditEntry,
  type AuditFilter,
  type auditList,
  isHeldUp,
  matchesAudit,
} from "@loraline/contracts";
import { PermanentError, RetryLaterError } from "@loraline/runtime";
import type { FastifyInstance, FastifyRequest } from "fastify";
import type { z } from "zod";
import type { GatewayContext } from "../context.ts";
import { badRequest } from "../errors.ts";
import { pageQueryOf } from "../paging.ts";

interface Deed {
  action: AuditAction;
  target: string;
  details?: Record<string, unknown>;
}

export type Audited = <T>(request: Pick<FastifyRequest, "id" | "caller">, deed: Deed, act: () => Promise<T>) => Promise<T>;

/**
 * Makes the function that records a deed and then does it. What cannot be recorded is not done.
 * @returns it throws RetryLaterError `audit_unavailable`, PermanentError 429 QUOTA_ADMIN_ACTIONS, or what `act` throws.
 */
export function createAudited({ bus, log, quotas }: Pick<GatewayContext, "bus" | "log" | "quotas">): Audited {
  return async ({ id, caller: { tenant, actor } }, { action, target, details = {} }, act) => {
    if (isHeldUp(action)) await quotas.admitAdminAction(tenant);
    const entry = { tenant, action, target, by: actor, details };
    await bus.audit.record({ ...entry, id, outcome: "accepted" }).catch((error: unknown) => {
      const message = `The audit log cannot be written (${(error as Error).message}), so nothing was changed. Try again.`;
      throw new RetryLaterError("audit_unavailable", 2000, message, { cause: error });
    });
    try {
      return await act();
    } catch (error) {
      const code = error instanceof PermanentError || error instanceof RetryLaterError ? error.code : "internal_error";
      await bus.audit.record({ ...entry, id: `${id}/failed`, outcome: "failed", code }).catch((failure: unknown) => {
        log.error({ err: failure, ...entry }, "the audit log has an action as accepted that failed");
      });
      throw error;
    }
  };
}

const isSame = (a: Actor, b: Actor): boolean => a.kind === b.kind && a.id === b.id;

export function auditRoutes({ bus }: GatewayContext): (app: FastifyInstance) => void {
  return (app) => {
    app.get("/loraline/audit", async ({ caller: { tenant, scopes, actor }, query }): Promise<z.input<typeof auditList>> => {
      const { before, ...filter } = query as AuditFilter & { before?: string };
      const { limit } = pageQueryOf(query, { limit: 50, max: 200 });
      if (before !== undefined && !/^[1-9]\d{0,14}$/.test(before)) {
        throw badRequest("invalid_cursor", `before must be the \`next\` of the page before, not "${before}".`, "before");
      }
      const matches = (entry: AuditEntry): boolean => (scopes.has("admin") || isSame(entry.by, actor)) && matchesAudit(filter, entry);
      const { entries, next } = await bus.audit.page({ tenant, before: before === undefined ? undefined : Number(before), limit, matches });
      return { data: entries, next };
    });
  };
}
