export { type DemoSummary } from "./server/demo.ts";
export { exitCodes } from "./failure.ts";
export { runProgram } from "./program.ts";
