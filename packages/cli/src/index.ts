export { connectLine, findAddress, type LineClient } from "./connect-line.ts";
export { type DemoSummary } from "./demo.ts";
export { exitCodes } from "./failure.ts";
