export { test } from "./fixtures.ts";
export * from "./servers.ts";
export * from "./simulated-engine.ts";
