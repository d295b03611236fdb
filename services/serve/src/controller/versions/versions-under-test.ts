/** Builders for the tests of versions: one adapter, its versions, and replicas that hold them. */
import type { AdapterState, ReplicaAdapter, ReplicaState } from "@loraline/contracts";
import { addVersion, applyServed, type NewVersion } from "./decide-versions.ts";

export const now = Date.parse("2026-01-01T00:01:00.000Z");
export const time = (agoMs = 0): string => new Date(now - agoMs).toISOString();
export const hex = (n: number): string => n.toString(16).padStart(64, "0");
export const added = (n: number, over: Partial<NewVersion> = {}): NewVersion => ({
  tenant: "acme",
  adapter: "pirate",
  engine: "local",
  base: "small",
  digest: `sha256:${hex(n)}`,
  manifest: { kind: "adapter", digest: `sha256:${hex(n)}`, size: 1 },
  evidence: { kind: "evidence", digest: `sha256:${hex(n)}`, size: 1 },
  runId: `run-${n}`,
  rank: 8,
  promote: "auto",
  evaluation: null,
  lastStepAt: time(2000),
  createdAt: time(1500),
  trace: null,
  ...over,
});
export const withVersions = (count: number, over: Partial<NewVersion> = {}): AdapterState => {
  let state: AdapterState | undefined;
  for (let n = 1; n <= count; n++) state = addVersion(state, added(n, over));
  return state as AdapterState;
};
export const served = (version: number, provenAt = time()) => ({ kind: "served" as const, version, replicas: 1, of: 1, provenAt });
export const serve = (state: AdapterState, ...versions: number[]): AdapterState =>
  versions.reduce((current, version) => applyServed(current, served(version), time()), state);
export const statuses = (state: AdapterState) => state.versions.map(({ version, status }) => `${version}:${status}`);

export const proof = (provenAt: string) => ({
  probes: 1,
  tokens: 1,
  agreement: 0,
  agreementLimit: 1,
  effect: 1,
  effectExpected: 1,
  provenAt,
});
export const replica = (
  name: string,
  state: AdapterState,
  held: Record<number, ReplicaAdapter["state"] | Partial<ReplicaAdapter>>,
  over: Partial<ReplicaState> = {},
): ReplicaState => ({
  engine: "local",
  base: "small",
  replica: name,
  incarnation: "1",
  url: "http://x",
  ready: true,
  at: time(),
  adapters: state.versions.flatMap(({ version, digest, engineName }) => {
    const given = held[version];
    const is = typeof given === "string" ? given : given?.state;
    return is === undefined
      ? []
      : [
          {
            tenant: "acme",
            adapter: "pirate",
            version,
            digest,
            engineName,
            state: is,
            proof: is === "proven" ? proof(time(version)) : null,
            error: is === "refused" || is === "quarantined" ? { code: "BAD", message: "bad" } : null,
            at: time(),
            ...(typeof given === "string" ? {} : given),
          },
        ];
  }),
  ...over,
});
