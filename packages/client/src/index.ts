export { ApiError } from "./api-error.ts";
export { type Answer, type ApiAddress, type ApiClient, createApiClient, type Request } from "./api-client.ts";
