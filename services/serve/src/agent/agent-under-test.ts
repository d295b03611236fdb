/** What tests of the agent's units share: adapters that are wanted, and a clock that goes when it is told to. */
import { type AdapterState, buckets, type Digest, type Proof } from "@loraline/contracts";
import { loraNameOf } from "../lora-names.ts";
import type { Clock } from "./clock.ts";
import type { WantedAdapter } from "./adapters/decide-adapters.ts";

export const digestOf = (n: number): Digest => `sha256:${String(n).padStart(64, "0")}`;

export function wantedAdapter(adapter: string, over: Partial<WantedAdapter> = {}): WantedAdapter {
  const id = { tenant: "acme", adapter, version: 1, digest: digestOf(1), ...over };
  const ref = { digest: id.digest, size: 1 };
  return {
    ...id,
    loraName: loraNameOf(id),
    manifest: { ...ref, kind: "adapter" },
    evidence: { ...ref, kind: "evidence" },
    trace: null,
    rank: 0,
    ...over,
  };
}

/** An adapter's state as KV `adapters` has it: one version for each of the given, all desired. */
export function adapterState(
  adapter: string,
  versions: readonly Record<string, unknown>[],
  over: Record<string, unknown> = {},
): AdapterState {
  return buckets.adapters.value.parse({
    tenant: "acme",
    adapter,
    engine: "e",
    base: "b",
    alias: null,
    history: [],
    versions: versions.map((version, index) => {
      const wanted = wantedAdapter(adapter, { version: index + 1, digest: digestOf(index + 1) });
      return {
        version: wanted.version,
        digest: wanted.digest,
        engineName: wanted.loraName,
        manifest: wanted.manifest,
        evidence: wanted.evidence,
        runId: `01J0000000000000000000000${index}`,
        rank: 4,
        note: null,
        promote: "auto",
        evaluation: null,
        lastStepAt: "2026-01-01T00:00:00.000Z",
        createdAt: "2026-01-01T00:00:00.000Z",
        trace: null,
        status: "desired",
        reason: null,
        servedAt: null,
        ...version,
      };
    }),
    ...over,
  });
}

export const proof: Proof = {
  probes: 1,
  tokens: 1,
  agreement: 0,
  agreementLimit: 1,
  effect: 1,
  effectExpected: 1,
  baseAgreement: 0,
  scale: null,
  provenAt: "2026-01-01T00:00:00.000Z",
};

interface TestClock extends Clock {
  /** Lets this many ms pass, and what is then due happen. */
  pass(ms: number): Promise<void>;
}

export function createTestClock(start = 1_000_000): TestClock {
  let time = start;
  let timers: { at: number; ring: () => void }[] = [];
  // Whatever waits for a promise that is resolved already gets its turn.
  const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
  return {
    now: () => time,
    after(ms, ring) {
      const timer = { at: time + ms, ring };
      timers.push(timer);
      return () => {
        timers = timers.filter((each) => each !== timer);
      };
    },
    async pass(ms) {
      const end = time + ms;
      await turn();
      for (;;) {
        const next = timers.filter(({ at }) => at <= end).toSorted((a, b) => a.at - b.at)[0];
        if (next === undefined) break;
        timers = timers.filter((each) => each !== next);
        time = Math.max(time, next.at);
        next.ring();
        await turn();
      }
      time = end;
      await turn();
    },
  };
}
