import type { RunState } from "@loraline/contracts";
import { createMetrics } from "@loraline/runtime";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import type { Attempt } from "../launchers/launcher.ts";
import { createTrainMetrics } from "./train-metrics.ts";

beforeEach(() => void vi.useFakeTimers({ toFake: ["performance", "Date"] }));
afterEach(() => void vi.useRealTimers());

const runOf = (tenant: string, runId: string, over: Partial<RunState>): RunState =>
  ({
    tenant,
    runId,
    spec: {},
    requestedAt: new Date().toISOString(),
    tokens: { at: new Date().toISOString() },
    queue: null,
    ...over,
  }) as RunState;

test("runs that wait are told with their reason and age; GPU seconds are those of running attempts, and stop with them", async () => {
  const metrics = createMetrics();
  const runs = new Map([
    ["acme.a", runOf("acme", "a", { phase: "running" })],
    ["acme.b", runOf("acme", "b", { phase: "queued", queue: { reason: "QUOTA", message: "" } })],
  ]);
  using own = createTrainMetrics(metrics, {
    runs,
    sizeOf: () => ({ slots: 1, gpus: 4 }),
    keyOf: ({ tenant, runId }) => `${tenant}.${runId}`,
  });
  const attempt = (runId: string, phase: "running" | "concluded"): Attempt => ({ tenant: "acme", runId, attempt: 1, name: runId, phase });
  const value = async (series: string): Promise<string | undefined> =>
    (await metrics.text())
      .split("\n")
      .find((line) => line.startsWith(`${series} `))
      ?.split(" ")[1];

  own.seen([attempt("a", "running")], { total: 2, free: 1 });
  vi.advanceTimersByTime(5000);
  own.seen([attempt("a", "running")], { total: 2, free: 1 });
  expect(await value('loraline_gpu_seconds_total{tenant="acme"}')).toBe("20");
  expect(await value('loraline_gpus_in_use{tenant="acme"}')).toBe("4");
  expect(await value('loraline_runs_waiting{tenant="acme",reason="QUOTA"}')).toBe("1");
  expect(await value('loraline_runs_oldest_waiting_seconds{tenant="acme"}')).toBe("5");
  expect(await value('loraline_runs{tenant="acme",phase="running"}')).toBe("1");
  expect(await value('loraline_train_slots{state="free"}')).toBe("1");
  expect(await value("loraline_train_leader")).toBe("1");

  own.seen([attempt("a", "concluded")], { total: 2, free: 2 });
  vi.advanceTimersByTime(5000);
  own.seen([], { total: 2, free: 2 });
  expect(await value('loraline_gpu_seconds_total{tenant="acme"}')).toBe("20");
  expect(await value('loraline_gpus_in_use{tenant="acme"}')).toBeUndefined();
  own[Symbol.dispose]();
  expect(await value("loraline_train_leader")).toBe("0");
  expect(await value('loraline_runs{tenant="acme",phase="running"}')).toBeUndefined();
});
