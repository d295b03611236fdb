import { createLog } from "@loraline/runtime";
import { afterEach, expect, test, vi } from "vitest";
import { createServerClock } from "./server-clock.ts";

const log = createLog({ service: "test", level: "silent" });
const serverTime = Date.parse("2026-01-01T00:00:00Z");

afterEach(() => {
  vi.useRealTimers();
});

test("goes by NATS' clock, and does not notice when this machine's is stepped", async () => {
  let elapsed = 5000;
  using clock = await createServerClock({ bucket: { serverTime: async () => serverTime }, log, elapsed: () => elapsed });
  expect(clock.now()).toBe(serverTime);
  vi.useFakeTimers({ toFake: ["Date"], now: Date.now() + 3_600_000 });
  expect(clock.now()).toBe(serverTime);
  elapsed += 1234;
  expect(clock.now()).toBe(serverTime + 1234);
});

test("an answer that took too long says nothing", async () => {
  let elapsed = 0;
  vi.useFakeTimers({ toFake: ["Date"], now: serverTime });
  const slow = async (): Promise<number> => {
    elapsed += 2000;
    return serverTime + 3_600_000;
  };
  using clock = await createServerClock({ bucket: { serverTime: slow }, log, elapsed: () => elapsed });
  expect(clock.now()).toBe(serverTime + 2000);
});
