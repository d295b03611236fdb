export { type DemoSummary } from "./server/demo.ts";
export { runProgram } from "./program.ts";
