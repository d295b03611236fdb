/** The audit log: who did what. One entry of the stream AUDIT each; apart from logs, which are for finding faults and go earlier. */
import { z } from "zod";
import { tenantName } from "./names.ts";

export const auditActions = [
  "key.create",
  "key.revoke",
  "limit.set",
  "limit.remove",
  "failed-message.redrive",
  "failed-message.delete",
  "dataset.delete",
  "run.cancel",
  "adapter.promote",
  "adapter.rollback",
  "adapter.place",
  "adapter.keep",
  "adapter.pull",
  "adapter.delete-version",
  "adapter.delete",
  "tenant.delete",
  "session.begin",
  "session.end",
] as const;
export type AuditAction = (typeof auditActions)[number];

/** Who did it, as it was verified; never what a message says of itself. */
export const actor = z.object({
  kind: z
    .enum(["key", "token", "nats", "kubernetes", "operator", "unverified"])
    .describe(
      "`key`: an API key. `token`: a token of the OIDC issuer. `nats`: a tenant's NATS user. `kubernetes`: a resource. `operator`: whoever runs the installation. `unverified`: a service without the installation's secret could not tell.",
    ),
  id: z.string().max(512).describe("Id of the key as in `keys list`, `sub` of the token, name of the NATS user or of the resource."),
  name: z.string().max(256).nullish().describe("Name of the key."),
});
export type Actor = z.infer<typeof actor>;

export const auditEntry = z.object({
  id: z.string().max(256).describe("Of what was done. An entry that was written twice has the same id twice."),
  tenant: tenantName,
  // Later versions know more actions, and entries stay for long.
  action: z.string().max(64),
  target: z.string().max(512).describe("Id or name of what it was done to."),
  by: actor,
  outcome: z
    .enum(["accepted", "done", "refused", "failed"])
    .describe(
      "`accepted`: written before it is done; it is done unless an entry `failed` with `<id>/failed` follows. `refused`: nothing was done; `code` says why.",
    ),
  code: z.string().nullish(),
  details: z.record(z.string(), z.unknown()),
});
export type AuditEntry = z.infer<typeof auditEntry>;

/** Of these a tenant's programs may do any number, so they are kept apart: they make no entry go that says who may do what. */
const everyday: readonly string[] = [
  "failed-message.redrive",
  "failed-message.delete",
  "dataset.delete",
  "run.cancel",
  "adapter.promote",
  "adapter.rollback",
  "adapter.place",
  "adapter.keep",
  "adapter.pull",
  "adapter.delete-version",
  "session.begin",
  "session.end",
] satisfies AuditAction[];
export const auditSubject = (tenant: string, action: string): string => `audit.${tenant}${everyday.includes(action) ? ".everyday" : ""}`;
/** Where the entries of a tenant are. */
export const auditSubjectsOf = (tenant: string): string[] => [`audit.${tenant}`, `audit.${tenant}.everyday`];
/** Actions that the quota `adminActionsPerDay` counts and holds up: not those by which an admin stops somebody, who could use it up before. */
export const isHeldUp = (action: AuditAction): boolean =>
  !everyday.includes(action) && action !== "key.revoke" && action !== "tenant.delete";

/** What is looked for in the audit log. */
export interface AuditFilter {
  action?: string | undefined;
  target?: string | undefined;
  /** Id or name. */
  by?: string | undefined;
}
export const matchesAudit = ({ action, target, by }: AuditFilter, entry: AuditEntry): boolean =>
  (action === undefined || entry.action === action) &&
  (target === undefined || entry.target === target) &&
  (by === undefined || entry.by.id === by || entry.by.name === by);
