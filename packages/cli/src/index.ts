export { connectLine, findAddress, type LineClient } from "./connect-line.ts";
export { type DemoSummary } from "./line/demo.ts";
export { exitCodes } from "./failure.ts";
