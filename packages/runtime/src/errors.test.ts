import { expect, test } from "vitest";
import { backoffMs, dispositionOf, explainSystemError, natsOutage, PermanentError, problemOf, RetryLaterError } from "./index.ts";

const at = (deliveries: number) => ({ deliveries, maxDeliver: 3 });

test("the failure decides the disposition", () => {
  expect(dispositionOf(new PermanentError("BAD", "no"), at(1))).toEqual({ kind: "dead-letter", code: "BAD", message: "no" });
  expect(dispositionOf(new RetryLaterError("BUSY", 1200, "wait"), at(9))).toEqual({ kind: "retry", afterMs: 1200, code: "BUSY" });
  expect(dispositionOf(new Error("odd"), at(2))).toMatchObject({ kind: "retry", afterMs: 1000 });
  expect(dispositionOf(new Error("odd"), at(3))).toEqual({ kind: "dead-letter", code: "MAX_DELIVERIES", message: "odd" });
  expect(dispositionOf("thrown text", at(3))).toMatchObject({ message: "thrown text" });
});

test("backoff doubles from half a second to one minute", () => {
  expect([1, 2, 3, 7, 8, 50].map(backoffMs)).toEqual([500, 1000, 2000, 32_000, 60_000, 60_000]);
});

test("a full disk is named, whatever was being done", () => {
  const explained = explainSystemError(Object.assign(new Error("write"), { code: "ENOSPC" }), "writing shard 3");
  expect(problemOf(explained)).toMatchObject({ code: "DISK_FULL", message: expect.stringContaining("writing shard 3") });
  const other = new Error("other");
  expect(explainSystemError(other, "x")).toBe(other);
});

/** An error as a client library makes it: told by its name. */
const named = (name: string, message: string): Error => Object.assign(new Error(message), { name });

test.each(["no responders", "heartbeats missed", "leadership change", "server shutdown"])(
  "a pull that ends with `%s` says that NATS is away: the message that needed it is not to blame",
  (message) => {
    expect(natsOutage(named("JetStreamStatusError", message))).toBe(message);
    expect(natsOutage(named("JetStreamError", message))).toBe(message);
    expect(natsOutage(new Error(message)), "another library's error").toBeUndefined();
    expect(natsOutage(named("JetStreamStatusError", "consumer deleted"))).toBeUndefined();
  },
);
