import { expect, test } from "vitest";
import { decidePlacement } from "./controller/placement/decide-placement.ts";
import { rankOf } from "./version-rank.ts";

const at = "2026-11-28T12:00:00.000Z";
const wanted = { at, until: at };
const known = { version: 1, servedAt: at, wanted: null };
const adapter = { alias: null, canary: null, awaiting: null };

test("promoted versions come first, then those of runs, then those asked for by name, then the rest", () => {
  const promoted = rankOf({ ...adapter, alias: 1 }, { ...known, wanted });
  const ofRun = rankOf(adapter, { ...known, servedAt: null });
  const named = rankOf(adapter, { ...known, wanted });
  expect([promoted, ofRun, named, rankOf(adapter, known)]).toEqual([0, 1, 2, 3]);
});

test("a tenant that asks for all its old versions by name keeps no run of another tenant from being served", () => {
  const placement = { mode: "all" } as const;
  const named = Array.from({ length: 300 }, (_, n) => ({
    loraName: `mallory.a.v${n + 1}.000000000000`,
    placement,
    rank: rankOf(adapter, { ...known, wanted }),
    current: n < 16 ? ["r1"] : [],
  }));
  const ofRun = { loraName: "victim.a.v1.000000000000", placement, rank: rankOf(adapter, { ...known, servedAt: null }), current: [] };
  const placed = decidePlacement({ engine: "e", versions: [...named, ofRun], replicas: ["r1"], capacity: 16 });
  expect(placed.get(ofRun.loraName)).toEqual({ replicas: ["r1"], problem: null });
});
