/** What tests of the agent's units share: adapters that are wanted, and a clock that goes when it is told to. */
import { adapterKey, type AdapterState, type Assignment, assignmentKey, buckets, type Digest, type Proof } from "@loraline/contracts";
import { assignmentsOf } from "../controller/placement/decide-assignments.ts";
import { loraNameOf } from "../lora-names.ts";
import type { Clock } from "./clock.ts";
import type { WantedAdapter } from "./adapters/decide-adapters.ts";
import type { WantedSet } from "./adapters/wanted-set.ts";

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

/** Gives a wanted set the entries of KV `assignments` that follow from the state of an adapter of tenant acme, and takes those away that do not. */
export function assign(
  wanted: WantedSet,
  adapter: string,
  state: AdapterState | undefined,
  at = { engine: "e", replica: "a" },
): { wanted: string[]; gone: string[] } {
  const entries = state === undefined ? new Map<string, Assignment>() : assignmentsOf(state);
  const before = wanted.namesOf(adapterKey({ tenant: "acme", adapter }));
  const keys = [at.replica, null].map((replica) => assignmentKey({ tenant: "acme", adapter, engine: at.engine, replica }));
  // First what is there, then what is not, as the controller writes them.
  for (const key of keys.filter((each) => entries.has(each))) wanted.take(key, entries.get(key));
  for (const key of keys.filter((each) => !entries.has(each))) wanted.take(key, undefined);
  const now = wanted.namesOf(adapterKey({ tenant: "acme", adapter }));
  return { wanted: [...now], gone: before.filter((name) => !now.includes(name)) };
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
