export { createTokenizeService } from "./service.ts";
