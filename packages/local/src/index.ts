export { natsAuthOf } from "@loraline/bus";
export { applyStreams } from "./apply-streams.ts";
export { natsAccounts } from "./nats-accounts.ts";
export { createTenantKey } from "./create-tenant-key.ts";
export { readAudit } from "./read-audit.ts";
export { type Line, type LineNews, type LineOptions, startLine } from "./start-line.ts";
export { clearStateDir } from "./state/state-dir.ts";
export { upgradeState } from "./state/upgrade.ts";
export { storageOfTenants } from "./storage-of-tenants.ts";
