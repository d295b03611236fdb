/** The tables of a large line, as the KV buckets have them: engines, adapters of many tenants, replicas, and what each replica holds. */
import type { AdapterState, EngineRecord, ReplicaHolding, ReplicaReport } from "@loraline/contracts";

export interface LineSize {
  adapters: number;
  replicas: number;
  tenants: number;
  /** Replicas that hold each adapter. */
  copies: number;
}

/** BENCH_SCALE divides it. */
const divided = (count: number): number => Math.round(count / Number(process.env["BENCH_SCALE"] ?? 1));
export const largeLine: LineSize = { adapters: divided(100_000), replicas: divided(1000), tenants: divided(10_000), copies: 2 };

export const base = "scale-base";
export const engine = "scale";
const digestOf = (n: number): `sha256:${string}` => `sha256:${n.toString(16).padStart(64, "0")}`;
const at = "2026-11-29T00:00:00.000Z";
const proof = {
  probes: 8,
  tokens: 320,
  agreement: 0.0871,
  agreementLimit: 0.3021,
  effect: 3.4712,
  effectExpected: 3.4698,
  baseAgreement: 0.0774,
  scale: { value: 1.0042, error: 0.0051 },
  provenAt: at,
};

export const tenantOf = (n: number, { tenants }: LineSize): string => `t${n % tenants}`;
export const replicaOf = (n: number): string => `r${n}`;
const digit = (n: number): string => digestOf(n).slice(-12);
const loraNameOf = (n: number, size: LineSize): string => `${tenantOf(n, size)}.a${n}.v1.${digit(n)}`;
/** The replicas that hold adapter `n`. */
const placesOf = (n: number, { replicas, copies }: LineSize): string[] =>
  Array.from({ length: copies }, (_, copy) => replicaOf((n * 7 + copy * 131) % replicas));

export const engineRecord: EngineRecord = {
  engine,
  base: { name: base, revision: "1", digest: digestOf(1) },
  maxLoraRank: 32,
  maxLoras: 8,
  maxCpuLoras: 400,
  maxModelLen: 2048,
  updatedAt: at,
};

export const report = (n: number, url: string): ReplicaReport => ({
  engine,
  base,
  replica: replicaOf(n),
  incarnation: "1",
  agent: "1",
  url,
  ready: true,
  counts: { wanted: 1, proven: 1, retrying: 0, quarantined: 0, refused: 0, draining: 0 },
  at,
});

/** An adapter with one version, promoted, with the history that such an adapter has. */
export function adapterState(n: number, size: LineSize): AdapterState {
  const [tenant, adapter] = [tenantOf(n, size), `a${n}`];
  const evaluation = { base_loss: 3.21, adapter_loss: 1.07, rows: 32, supervised_tokens: 2048 };
  const trace = `00-${digestOf(n).slice(-32)}-0123456789abcdef-01`;
  const line = { from: null, to: 1, kind: "promoted" as const, n: 1, by: null, reason: "proven on 2 replicas", at };
  return {
    tenant,
    adapter,
    engine,
    base,
    versions: [
      {
        version: 1,
        digest: digestOf(n),
        manifest: { kind: "adapter", digest: digestOf(n), size: 900 },
        evidence: { kind: "evidence", digest: digestOf(n + 1), size: 90_000 },
        runId: "01JD000000000000000000000A",
        rank: 8,
        engineName: loraNameOf(n, size),
        replicas: placesOf(n, size),
        unplaced: null,
        status: "desired",
        reason: null,
        promote: "auto",
        evaluation,
        lastStepAt: at,
        createdAt: at,
        servedAt: at,
        servedOn: size.copies,
        servedOf: size.copies,
        trace,
      },
    ],
    alias: 1,
    history: [line],
  };
}

/** What replicas hold of adapter `n`. */
export const holdings = (n: number, size: LineSize): { replica: string; value: ReplicaHolding }[] =>
  placesOf(n, size).map((replica) => {
    const [tenant, adapter] = [tenantOf(n, size), `a${n}`];
    const held = {
      tenant,
      adapter,
      version: 1,
      digest: digestOf(n),
      engineName: loraNameOf(n, size),
      state: "proven" as const,
      blame: null,
      proof,
      error: null,
      at,
    };
    return { replica, value: { incarnation: "1", agent: "1", adapters: [held] } };
  });
