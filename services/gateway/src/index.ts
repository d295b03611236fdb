export { createApiKey, hashApiKey } from "./access/auth.ts";
export { createProjector } from "./projector.ts";
export { createGatewayService, type Gateway, type GatewayServiceOptions } from "./service.ts";
