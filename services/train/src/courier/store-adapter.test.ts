import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { runCancelRequested, type TokenManifest } from "@loraline/contracts";
import { createLog, createTelemetry, UnavailableError } from "@loraline/runtime";
import { afterEach, beforeEach, expect, it } from "vitest";
import type { AttemptContext } from "./attempt-context.ts";
import { storeAdapter } from "./store-adapter.ts";

const log = createLog({ service: "test", level: "silent" });
const telemetry = createTelemetry({ service: "test" });
const hex = (digit: string): `sha256:${string}` => `sha256:${digit.repeat(64)}`;
const tokens = { base: { name: "b", revision: "r", digest: hex("b") }, templateDigest: hex("7") } as unknown as TokenManifest;
const result = {
  adapter: {
    rank: 8,
    target_modules: ["v_proj", "q_proj"],
    parameters: 12,
    files: [{ path: "adapter_model.safetensors", sha256: "a".repeat(64) }],
  },
  steps: 4,
  train_loss: 1,
  tokens_seen: 9,
  train_tokens_per_second: 3,
  evaluation: null,
  probes: [],
  loss_history: [],
} as never;

const lastStepAt = "2026-11-24T12:00:00.000Z";

let work: string;
let did: string[];
beforeEach(() => {
  work = mkdtempSync(join(tmpdir(), "loraline-store-"));
  mkdirSync(join(work, "adapter"));
  writeFileSync(join(work, "adapter/adapter_model.safetensors"), "weights");
  did = [];
});
afterEach(() => rmSync(work, { recursive: true, force: true }));

/** An attempt whose store is away `away` times. */
function attemptOf(away: number, stop = new AbortController()): AttemptContext {
  let failures = away;
  return {
    spec: { tenant: "acme", runId: "01KB000000000000000000RN01", attempt: 1, tokens: { kind: "tokens", digest: hex("c"), size: 1 } },
    work,
    at: { tenant: "acme", id: "01KB000000000000000000RN01" },
    bus: { last: async (event: unknown) => (event === runCancelRequested && stop.signal.aborted ? {} : undefined) },
    objects: {
      async put(_tenant: string, kind: string) {
        if (failures-- > 0) throw new UnavailableError("STORE_FULL", "no room");
        did.push(kind);
        return { kind, digest: hex("d"), size: 1 };
      },
    },
    outbox: { send: async (event: { type: string }) => void did.push(event.type) },
    stop: stop.signal,
    telemetry,
    log,
  } as unknown as AttemptContext;
}

it("stores each only when all before it is there, and waits out a store that is away", async () => {
  await storeAdapter(attemptOf(2), tokens, { result, lastStepAt });
  expect(did).toEqual(["adapter-file", "adapter", "evidence", "run.trained.v1"]);
});

it("is given up when the run is cancelled, and only then", async () => {
  const stop = new AbortController();
  stop.abort();
  const cancelled = storeAdapter(attemptOf(Infinity, stop), tokens, { result, lastStepAt });
  await expect(cancelled).rejects.toMatchObject({ code: "PREEMPTED", message: expect.stringMatching(/^the run was cancelled/) });
  expect(did).toEqual([]);
});
