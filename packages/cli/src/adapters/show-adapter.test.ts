import { canarySettings } from "@loraline/contracts";
import { expect, it } from "vitest";
import { type AdapterView, listAdapters, listHistory } from "./show-adapter.ts";
import { shaped } from "../terminal.ts";

const at = "2026-01-01T10:00:00.000Z";
const digest = `sha256:${"a".repeat(64)}` as const;
const blob = { digest, size: 1 };
const version = (number: number, over: Partial<AdapterView["adapter"]["versions"][number]> = {}) => ({
  version: number,
  digest,
  manifest: { kind: "adapter" as const, ...blob },
  evidence: { kind: "evidence" as const, ...blob },
  runId: "01JD000000000000000000000A",
  rank: 8,
  engineName: `acme.pirate.v${number}`,
  status: "desired" as const,
  reason: null,
  promote: "auto" as const,
  evaluation: null,
  lastStepAt: at,
  createdAt: at,
  servedAt: at,
  trace: null,
  ...over,
});
const canary = {
  version: 2,
  from: 1,
  step: 1,
  share: 25,
  since: at,
  startedAt: at,
  by: "ann",
  settings: canarySettings.parse({ interval_s: 90 }),
  baseline: {},
};
const view = (over: Partial<AdapterView["adapter"]> = {}): AdapterView => ({
  adapter: {
    tenant: "acme",
    adapter: "pirate",
    engine: "local",
    base: "small",
    versions: [version(1), version(2, { note: "nothing was judged" })],
    alias: 1,
    canary,
    history: [
      { from: null, to: 1, kind: "promoted", by: null, reason: "proven on 1 replica", at },
      { from: 1, to: 2, kind: "canary-started", share: 5, by: "ann", reason: "canary requested", command: 7, at },
      { from: 1, to: 2, kind: "canary-ended", outcome: "rolledback", code: "CANARY_ERRORS", by: null, reason: "3 of 4 failed", at },
    ],
    ...over,
  },
  replicas: [],
  canary: { version: { requests: 12, errors: 1, firstByteP95Ms: null }, from: { requests: 90, errors: 0, firstByteP95Ms: null } },
});

it("tells where a canary stands and what it waits for", () => {
  const lines = shaped(listAdapters([view()], Date.parse(at) + 30_000), Infinity);
  expect(lines[1]).toMatch(/acme\/pirate +1 \* +desired/);
  expect(lines[2]).toMatch(/acme\/pirate +2 25 % .*nothing was judged/);
  expect(lines[3]).toBe(
    "acme/pirate: canary of version 2 beside 1, by ann, step 2 of 3 (25 %): 1 min 0 s left, 12 of 50 answers, 1 failed",
  );
  expect(shaped(listAdapters([view()], Date.parse(at) + 100_000), Infinity)[3]).toMatch(/\(25 %\): 12 of 50 answers/);
  expect(shaped(listAdapters([view({ canary: { ...canary, unprovenSince: at } })]), Infinity)[3]).toContain(
    "paused, for no ready replica has it proven since 2026-01-01 10:00:00",
  );
  expect(shaped(listAdapters([view({ canary: null })]), Infinity)).toHaveLength(3);
});

it("says of retired versions that they are loaded again, of deleted ones who did it, and what a move waits for", () => {
  const reason = { code: "VERSION_DELETED", message: "it was deleted on 2026-01-01 by ann." };
  const versions = [version(1, { status: "deleted", reason }), version(2, { status: "retired" }), version(3)];
  const awaiting = { kind: "promote" as const, version: 2, by: "ann", command: 7, since: at };
  const history = [
    { from: null, to: 2, kind: "retired" as const, because: 3, by: null, reason: "the 1 newest version is kept (keep: 1)", at },
    { from: null, to: 1, kind: "deleted" as const, by: "ann", reason: "deletion requested", at },
  ];
  const shown = view({ versions, canary: null, alias: 3, awaiting, history });
  const lines = shaped(listAdapters([shown]), Infinity);
  expect(lines[1]).toMatch(/acme\/pirate +1 +deleted .*it was deleted on 2026-01-01 by ann\./);
  expect(lines[2]).toMatch(/acme\/pirate +2 +retired .*loaded again when asked for/);
  expect(lines[4]).toBe("acme/pirate: the alias moves to version 2 when it is loaded and proven again");
  expect(shaped(listHistory([shown]), Infinity).map((line) => line.replace(/ {2,}/g, " | "))).toEqual([
    expect.stringContaining("WHEN"),
    "2026-01-01 10:00:00 | acme/pirate | retired 2 | (itself) | the 1 newest version is kept (keep: 1)",
    "2026-01-01 10:00:00 | acme/pirate | deleted 1 | ann | deletion requested",
  ]);
});

it("tells who moved the alias, when and why", () => {
  const [, ...lines] = shaped(listHistory([view()]), Infinity);
  expect(lines.map((line) => line.replace(/ {2,}/g, " | "))).toEqual([
    "2026-01-01 10:00:00 | acme/pirate | promoted 1 | (itself) | proven on 1 replica",
    "2026-01-01 10:00:00 | acme/pirate | canary 2 began, 5 % | ann | canary requested",
    "2026-01-01 10:00:00 | acme/pirate | canary 2 rolled back | (itself) | 3 of 4 failed [CANARY_ERRORS]",
  ]);
  expect(shaped(listHistory([view({ history: [] })]), Infinity)).toEqual(["acme/pirate: nothing was promoted yet"]);
});
