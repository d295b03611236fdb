import { adapterState } from "@loraline/contracts";
import { describe, expect, test } from "vitest";
import { type AdapterDecision, decideAdapter, type ObservedAdapter } from "./decide-adapter.ts";

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

describe("what stays loaded", () => {
  const [first] = state.versions;
  const version = (number: number, over: object = {}) => ({ ...first, version: number, ...over });
  const retired = adapterState.parse({ ...state, versions: [version(1, { status: "retired" }), version(2)], alias: 2 });
  const observe = (over: Partial<ObservedAdapter>) =>
    decideAdapter({
      tenant: "acme",
      generation: 1,
      spec: {},
      before: undefined,
      state: retired,
      held: ({ version: number }) => ({ proven: number === 2 ? 1 : 0, of: 1, trouble: undefined }),
      refusals: {},
      now: "2026-11-28T00:00:00.000Z",
      ...over,
    });
  const conditionOf = ({ status }: AdapterDecision, type: string) => status.conditions?.find((each) => each.type === type);

  test("a retired version is asked for although no replica has it: serve loads it again", () => {
    const asked = observe({ spec: { version: 1 } });
    expect(asked.commands).toEqual([{ part: "version", kind: "rollback", version: 1, canary: undefined }]);
    const before = { ...asked.status, asked: { version: 1, versionSeq: 7 } };
    const awaiting = { kind: "rollback", version: 1, by: "me", command: 7, since: "2026-11-28T00:00:00.000Z" };
    const waiting = observe({ spec: { version: 1 }, before, state: adapterState.parse({ ...retired, awaiting }) });
    expect(conditionOf(waiting, "Promoted")).toMatchObject({ status: "False", reason: "Loading" });
    expect(waiting.commands).toEqual([]);
  });
  test("a deleted version is not asked for", () => {
    const reason = { code: "VERSION_DELETED", message: "it was deleted on 2026-11-28 by ann." };
    const deleted = adapterState.parse({ ...retired, versions: [version(1, { status: "deleted", reason }), version(2)] });
    const decided = observe({ spec: { version: 1 }, state: deleted });
    expect(decided.commands).toEqual([]);
    expect(conditionOf(decided, "Promoted")).toMatchObject({
      status: "False",
      reason: "VERSION_DELETED",
      message: expect.stringContaining("by ann"),
    });
  });
  test("keep is asked for once, and the last word counts", () => {
    expect(conditionOf(observe({}), "Kept")).toMatchObject({
      status: "True",
      message: expect.stringContaining("keep is 3; 1 version is retired"),
    });
    const asked = observe({ spec: { keep: "all" } });
    expect(asked.commands).toEqual([{ part: "keep", keep: "all" }]);
    const before = { ...asked.status, asked: { keep: "all", keepSeq: 7 } };
    const all = adapterState.parse({ ...retired, keep: "all" });
    expect(conditionOf(observe({ spec: { keep: "all" }, before, state: all }), "Kept")).toMatchObject({ status: "True", reason: "Kept" });
    expect(observe({ spec: { keep: "all" }, before }).unanswered).toBe(true);
    const elsewhere = observe({ spec: { keep: "all" }, before, lastKept: 8 });
    expect(elsewhere.commands).toEqual([]);
    expect(conditionOf(elsewhere, "Kept")).toMatchObject({ status: "False", reason: "MOVED_ELSEWHERE" });
  });
});
