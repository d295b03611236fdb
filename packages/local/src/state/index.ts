/** What commands ask of a state directory without loading the services. */
export { makeBackup, restoreBackup } from "./backup.ts";
export { findLine, readChildren, readOwner, readStateVersion } from "./state-dir.ts";
export { stopLine } from "./stop-line.ts";
