export { createOperatorKey, hashApiKey } from "./access/auth.ts";
export { createProjector } from "./projector.ts";
export { createGatewayService } from "./service.ts";
