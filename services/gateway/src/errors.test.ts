import { PermanentError, RetryLaterError, UnavailableError } from "@loraline/runtime";
import { describe, expect, it } from "vitest";
import { errorReplyOf } from "./errors.ts";

const named = (name: string, message = "x") => Object.assign(new Error(message), { name });
const fastify = (code: string, statusCode: number) => Object.assign(new Error("told by fastify"), { code, statusCode });

describe("errorReplyOf", () => {
  it.each<[unknown, number, string, string]>([
    [new PermanentError("RANK_TOO_HIGH", "m", { param: "lora.r" }), 422, "RANK_TOO_HIGH", "invalid_request_error"],
    [new PermanentError("OBJECT_MISSING", "m", { status: 404 }), 404, "OBJECT_MISSING", "invalid_request_error"],
    [new PermanentError("DISK_FULL", "m", { status: 507 }), 507, "DISK_FULL", "server_error"],
    [new RetryLaterError("NO_ENGINE", 1200, "m"), 503, "NO_ENGINE", "server_error"],
    [new UnavailableError("STORE_UNAVAILABLE", "m"), 503, "STORE_UNAVAILABLE", "server_error"],
    [new UnavailableError("STORE_FULL", "m"), 507, "STORE_FULL", "server_error"],
    [fastify("FST_ERR_CTP_BODY_TOO_LARGE", 413), 413, "body_too_large", "invalid_request_error"],
    [fastify("FST_FILES_LIMIT", 413), 400, "too_many_files", "invalid_request_error"],
    [fastify("FST_ERR_SOMETHING_NEW", 406), 406, "something_new", "invalid_request_error"],
    [named("NoResponders"), 503, "bus_unavailable", "server_error"],
    [named("TimeoutError"), 503, "bus_unavailable", "server_error"],
    [named("JetStreamApiError", "insufficient resources"), 507, "STORE_FULL", "server_error"],
    [new Error("a secret path"), 500, "internal_error", "server_error"],
    ["thrown text", 500, "internal_error", "server_error"],
  ])("%s → %i %s", (error, status, code, type) => {
    expect(errorReplyOf(error)).toMatchObject({ status, body: { error: { code, type } } });
  });

  it("keeps the field, the wait and the reason, and keeps what is unknown to itself", () => {
    expect(errorReplyOf(new PermanentError("X", "m", { param: "lora.r" })).body.error).toEqual({
      message: "m",
      code: "X",
      param: "lora.r",
      type: "invalid_request_error",
    });
    expect(errorReplyOf(new RetryLaterError("X", 1200, "m")).retryAfterSeconds).toBe(2);
    expect(JSON.stringify(errorReplyOf(new Error("a secret path")))).not.toContain("secret");
  });
});
