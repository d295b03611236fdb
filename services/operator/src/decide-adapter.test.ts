import { adapterState } from "@loraline/contracts";
import { expect, test } from "vitest";
import { decideAdapter } from "./decide-adapter.ts";

const blob = { kind: "adapter", digest: `sha256:${"a".repeat(64)}`, size: 1 } as const;
const state = adapterState.parse({
  tenant: "acme",
  adapter: "pirate",
  engine: "local",
  base: "tiny",
  versions: [
    {
      version: 1,
      digest: blob.digest,
      manifest: blob,
      evidence: blob,
      runId: "01KB000000000000000000RN01",
      rank: 8,
      engineName: "acme.pirate.v1.aaaa",
      status: "desired",
      reason: null,
      promote: "auto",
      evaluation: null,
      lastStepAt: "2026-11-24T00:00:00.000Z",
      createdAt: "2026-11-24T00:00:00.000Z",
      servedAt: "2026-11-24T00:00:00.000Z",
      trace: null,
    },
  ],
  alias: 1,
  history: [],
});

test("an adapter that is on no replica because its engine's base is missing says that; one that answers does not", () => {
  const engineProblem = { code: "BASE_MISSING", message: 'engine "local": base "tiny" is not here' };
  const conditionsAt = (proven: number, of: number) => {
    const held = () => ({ proven, of, trouble: undefined });
    const observed = { tenant: "acme", generation: 1, spec: {}, before: undefined, state, held, engineProblem, refusals: {}, now: "" };
    const { conditions } = decideAdapter({ ...observed, now: "2026-11-28T00:00:00.000Z" }).status;
    return Object.fromEntries((conditions ?? []).map(({ type, status, reason, message }) => [type, { status, reason, message }]));
  };
  expect(conditionsAt(0, 0)).toMatchObject({
    Ready: { status: "False", reason: "BASE_MISSING", message: expect.stringContaining(engineProblem.message) },
    Converged: { status: "False", reason: "BASE_MISSING", message: expect.stringContaining(engineProblem.message) },
  });
  expect(conditionsAt(2, 2)).toMatchObject({ Ready: { status: "True" }, Converged: { status: "True" } });
});
