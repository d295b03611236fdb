import { describe, expect, it } from "vitest";
import { decideAdvice, type EngineSight } from "./decide-advice.ts";
import { engineRecord } from "../gateway-under-test.ts";

const minutes = 60_000;
const versions = (count: number, highestRank = 32, unplaced = 0) => ({ count, unplaced, highestRank });
const sight = (over: Partial<EngineSight> = {}): EngineSight => ({
  engine: engineRecord({ maxLoras: 4, maxCpuLoras: 16, maxLoraRank: 32 }),
  replicas: [{ ready: true, quarantined: 0 }],
  versions: versions(3),
  asked: 3,
  windowMs: 5 * minutes,
  ...over,
});
const codes = (over: Partial<EngineSight>) => decideAdvice(sight(over)).map(({ code }) => code);
const two = [
  { ready: true, quarantined: 0 },
  { ready: true, quarantined: 0 },
];

describe("decideAdvice", () => {
  it("has nothing to say about an engine that fits its traffic", () => {
    expect(codes({})).toEqual([]);
    expect(codes({ asked: 4 })).toEqual([]);
    expect(codes({ asked: 8, replicas: two })).toEqual([]);
  });

  it("says first that its base is missing", () => {
    const problem = { code: "BASE_MISSING", message: "base is not here" };
    const engine = engineRecord({ problem });
    expect(codes({ engine })).toEqual(["BASE_MISSING"]);
    expect(codes({ engine, replicas: [] })).toEqual(["BASE_MISSING", "NO_REPLICA"]);
  });

  it("says when more adapters are asked for than there are slots, and how many it takes", () => {
    const [advice] = decideAdvice(sight({ asked: 11 }));
    expect(advice).toEqual({
      level: "warn",
      code: "WORKING_SET_TOO_BIG",
      message:
        "11 adapters were asked in the last 5 min, and max_loras is 4: adapters are swapped in and out between requests. Raise max_loras to 11, or add replicas.",
    });
    expect(decideAdvice(sight({ asked: 11, replicas: two, windowMs: 40_000 }))[0]?.message).toMatch(
      /last 40 s, and max_loras is 4, which makes 8 on 2 replicas.*Raise max_loras to 6/,
    );
  });

  it("says when versions are spread, and when some fit nowhere", () => {
    expect(codes({ versions: versions(20) })).toEqual(["SPREAD"]);
    expect(decideAdvice(sight({ versions: versions(20, 32, 4) }))).toMatchObject([
      { level: "warn", code: "NO_ROOM", message: expect.stringContaining("Raise max_cpu_loras to 20 or more") },
    ]);
  });

  it("counts only ready replicas, and says when there is none", () => {
    expect(
      codes({
        asked: 8,
        replicas: [
          { ready: true, quarantined: 0 },
          { ready: false, quarantined: 0 },
        ],
      }),
    ).toEqual(["WORKING_SET_TOO_BIG"]);
    expect(codes({ asked: 99, replicas: [{ ready: false, quarantined: 0 }] })).toEqual(["NO_REPLICA"]);
  });

  it("says where memory is wasted, and where a replica is in trouble", () => {
    expect(codes({ versions: versions(3, 8) })).toEqual(["RANK_TOO_ROOMY"]);
    expect(codes({ versions: versions(3, 17) })).toEqual([]);
    const roomy = engineRecord({ maxLoras: 16, maxCpuLoras: 16, maxLoraRank: 32 });
    expect(codes({ engine: roomy })).toEqual(["SLOTS_UNUSED"]);
    // Not before it was looked at for long enough.
    expect(codes({ engine: roomy, windowMs: minutes })).toEqual([]);
    expect(codes({ replicas: [{ ready: true, quarantined: 2 }, ...two] })).toEqual(["QUARANTINE"]);
  });
});
