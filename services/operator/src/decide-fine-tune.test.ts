import { type AdapterVersion, foldRun, type RunEvent, type RunState, runSpec } from "@loraline/contracts";
import { describe, expect, it, test } from "vitest";
import { conditionsOf, duration } from "./conditions.ts";
import { decideFineTune, decideWanted, type Observed, originOf } from "./decide-fine-tune.ts";
import { idsOf } from "./ids.ts";

const id = "01KB0000000000000000000DS1";
const origin = { namespace: "team", namespaceUid: "n", name: "tune", uid: "u" };
const spec = runSpec.parse({ base: "b", adapter: "pirate", dataset: id });
const event = (type: string, data: object, seq: number): RunEvent =>
  ({ type, data, at: { tenant: "acme", id }, time: `2026-11-24T10:00:0${seq}Z`, seq, trace: null }) as RunEvent;
const runAfter = (...happened: [type: string, data: object][]): RunState | undefined =>
  [["run.requested.v1", { spec }] as const, ...happened].reduce<RunState | undefined>(
    (state, [type, data], index) => foldRun(state, event(type, data, index + 1)),
    undefined,
  );
const observed = (over: Partial<Observed>): Observed => ({
  name: "tune",
  tenant: "acme",
  generation: 1,
  before: undefined,
  runId: id,
  run: undefined,
  waited: [],
  problems: [],
  traceId: undefined,
  version: undefined,
  now: "2026-11-24T10:00:09Z",
  ...over,
});
const started = ["run.started.v1", { attempt: 1, job: "j" }] as const;
const tokenized = ["run.tokenized.v1", { manifest: {}, totals: { sequences: 1, tokens: 2 }, packed: false, cacheHit: true }] as const;

describe("conditions", () => {
  it.for<[string, RunState | undefined, string]>([
    ["asked for", runAfter(), "True ? ? ? False ?"],
    ["tokenized", runAfter([...tokenized]), "True True ? ? False ?"],
    ["running", runAfter([...tokenized], [...started]), "True True ? ? False ?"],
    ["rejected", runAfter(["run.rejected.v1", { code: "X", message: "no" }]), "False False False False True False True"],
    ["failed", runAfter([...tokenized], ["run.failed.v1", { code: "X", message: "no" }]), "True True False False True False True"],
    ["cancelled", runAfter([...tokenized], ["run.cancelled.v1", {}]), "True True False False True False True"],
  ])("of a run that is %s", ([, run, expected]) => {
    const { status } = decideFineTune(observed({ run }));
    expect(status.conditions?.map((one) => (one.status === "Unknown" ? "?" : one.status)).join(" ")).toBe(expected);
    // Seen again later it is the same, to the time of each transition, and nothing is told twice.
    const again = decideFineTune(observed({ run, before: status, now: "2026-11-24T11:00:00Z" }));
    expect(again).toEqual({ status, milestones: [] });
  });

  it("say in two words, for tools that know nothing of FineTunes, whether it is ready, under way or stalled, and why", () => {
    const summary = (over: Partial<Observed>) =>
      decideFineTune(observed(over)).status.conditions?.filter(({ type }) => type === "Ready" || type === "Stalled");
    expect(summary({ run: runAfter([...tokenized]) })).toMatchObject([
      { type: "Ready", status: "Unknown", reason: "Waiting", observedGeneration: 1 },
    ]);
    expect(summary({ problems: [{ code: "BASE_UNKNOWN", message: "no engine serves it" }] })).toMatchObject([
      { type: "Ready", status: "Unknown", reason: "BASE_UNKNOWN", message: "no engine serves it" },
    ]);
    expect(summary({ problems: [{ code: "RANK_TOO_HIGH", message: "lora.r is 64" }] })).toMatchObject([
      { type: "Ready", status: "False", reason: "RANK_TOO_HIGH" },
      { type: "Stalled", status: "True", reason: "RANK_TOO_HIGH", message: "lora.r is 64" },
    ]);
    const blob = { kind: "checkpoint", digest: `sha256:${"a".repeat(64)}`, size: 1 };
    const trained = ["run.trained.v1", { attempt: 1, adapter: blob, steps: 3, trainLoss: 0.1, evaluation: null }] as const;
    const served = ["run.served.v1", { version: 1, digest: blob.digest, replicas: 2, promoted: true }] as const;
    const run = runAfter([...tokenized], [...started], [...trained], [...served]);
    expect(summary({ run })).toMatchObject([{ type: "Ready", status: "True", reason: "Served" }]);
  });

  it("change their time with their status only", () => {
    const said = (status: "True" | "False", message: string) => ({ A: { status, reason: "R", message } });
    const first = conditionsOf(said("False", "one"), { generation: 1, now: "t1" });
    const second = conditionsOf(said("False", "two"), { before: first, generation: 2, now: "t2" });
    const third = conditionsOf(said("True", "two"), { before: second, generation: 2, now: "t3" });
    expect([first, second, third].flat().map(({ lastTransitionTime }) => lastTransitionTime)).toEqual(["t1", "t1", "t3"]);
  });

  it("are joined by one event about what was given and changes nothing", () => {
    const parsed = decideWanted(
      { base: "b", adapter: "a", dataset: { id }, training: { output_dir: "./out" } },
      { dataset: id, validation: id },
      origin,
    );
    if ("problems" in parsed) throw new Error(JSON.stringify(parsed.problems));
    const run = foldRun(undefined, event("run.requested.v1", { spec: parsed.spec }, 1));
    const { status, milestones } = decideFineTune(observed({ run }));
    expect(milestones).toContainEqual(
      expect.objectContaining({ reason: "FieldsNotUsed", message: expect.stringMatching(/^training\.output_dir/) }),
    );
    expect(decideFineTune(observed({ run, before: status })).milestones).toEqual([]);
  });

  it("tell a refusal once, although it fails them all", () => {
    const problems = [{ code: "RANK_TOO_HIGH", message: "lora.r is 64" }];
    const { status, milestones } = decideFineTune(observed({ problems }));
    expect(status.phase).toBe("Rejected");
    expect(milestones.map(({ reason }) => reason)).toEqual(["RANK_TOO_HIGH"]);
  });
});

test("a version that nothing serves says so, instead of converging for ever", () => {
  const trained = ["run.trained.v1", { attempt: 1, steps: 4, evaluation: null, trainLoss: 1 }] as const;
  const run = runAfter([...tokenized], [...started], [...trained]);
  const versionAt = (of: number) => ({ version: { version: 1, digest: "d" } as unknown as AdapterVersion, proven: 0, of });
  const servedOf = (of: number) =>
    decideFineTune(observed({ run, version: versionAt(of) })).status.conditions?.find(({ type }) => type === "Served");
  expect(servedOf(0)).toMatchObject({ status: "Unknown", reason: "NO_REPLICA", message: "version 1: no ready replica should hold it" });
  expect(servedOf(2)).toMatchObject({ status: "Unknown", reason: "Converging", message: "version 1 is proven on 0/2 replicas" });
});

test("a run knows its resource; what a user writes there does not count", () => {
  const metadata = { team: "a", "loraline.dev/finetune-uid": "forged" };
  const wanted = decideWanted({ base: "b", adapter: "a", dataset: { id }, metadata }, { dataset: id, validation: id }, origin);
  if ("problems" in wanted) throw new Error(wanted.problems[0].message);
  expect(wanted.spec.metadata).toMatchObject({ team: "a" });
  expect(originOf(wanted)).toEqual(origin);
  expect(originOf({ spec })).toBeUndefined();
});

test("ids follow from the resource alone", () => {
  const object = (uid: string) => ({ metadata: { uid, creationTimestamp: new Date("2026-11-24T10:00:00Z") } });
  const ids = idsOf(object("a"));
  expect(idsOf({ metadata: { uid: "a", creationTimestamp: "2026-11-24T10:00:00Z" as unknown as Date } })).toEqual(ids);
  expect(new Set([...Object.values(ids), idsOf(object("b")).run]).size).toBe(4);
  for (const one of Object.values(ids)) expect(one).toMatch(/^[0-7][0-9A-HJKMNP-TV-Z]{25}$/);
});

test.for([
  [0.4, "0s"],
  [59.6, "1m00s"],
  [200, "3m20s"],
  [7500, "2h05m"],
] as const)("%d seconds are %s", ([seconds, text]) => {
  expect(duration(seconds)).toBe(text);
});

it("names nothing of another namespace or tenant, whatever its fields say", () => {
  const ids = { dataset: id, validation: id };
  const wanted = (over: object) => decideWanted({ base: "b", adapter: "pirate", dataset: { id }, ...over }, ids, origin);
  const foreign: [string, object][] = [
    ["a ConfigMap of another namespace", { dataset: { configMap: { name: "../../other/configmaps/x", key: "a.jsonl" } } }],
    ["what is above a ConfigMap", { dataset: { configMap: { name: "..", key: "a.jsonl" } } }],
    ["a key that is no key", { dataset: { configMap: { name: "x", key: "../a.jsonl" } } }],
    ["a Secret", { dataset: { secret: { name: "x", key: "a.jsonl" } } }],
    ["a namespace", { namespace: "other" }],
    ["a tenant", { tenant: "other" }],
    ["another tenant's adapter", { adapter: "other/pirate" }],
    ["a subject", { adapter: "pirate.>" }],
    ["a dataset by another name", { dataset: { id: "other.01KB0000000000000000000DS1" } }],
    ["an adapter to begin with, by a subject", { init_from: "other.pirate" }],
  ];
  for (const [what, over] of foreign) expect(wanted(over), what).toHaveProperty("problems");
  // What a run says of its origin is the resource's, not what its author writes.
  const claimed = { "loraline.dev/finetune": "other/tune", "loraline.dev/finetune-uid": "x", "loraline.dev/namespace-uid": "x" };
  const found = wanted({ metadata: claimed });
  expect("spec" in found && originOf({ spec: found.spec })).toEqual(origin);
});
