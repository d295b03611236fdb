export { createOperator, type OperatorDeps } from "./operator.ts";
