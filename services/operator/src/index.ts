export { createOperatorService, type OperatorServiceDeps } from "./service.ts";
