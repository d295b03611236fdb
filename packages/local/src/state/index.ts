/** What commands ask of a state directory without loading the services. */
export { makeBackup, restoreBackup } from "./backup.ts";
export { natsUserOf } from "../nats-accounts.ts";
export { findLine, readChildren, readNatsPassword, readOwner, readStateVersion } from "./state-dir.ts";
export { stopLine } from "./stop-line.ts";
