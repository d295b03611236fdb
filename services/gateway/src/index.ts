export { createApiKey, hashApiKey } from "./auth.ts";
export { createProjector } from "./projector.ts";
export { createGateway, type Gateway, type GatewayOptions } from "./server.ts";
