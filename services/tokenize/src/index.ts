export { createTokenizeService, type TokenizeServiceDeps } from "./service.ts";
