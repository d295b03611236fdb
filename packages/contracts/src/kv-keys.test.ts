import { expect, it } from "vitest";
import {
  cacheKey,
  holdingKey,
  limitKey,
  parseHoldingKey,
  parseLimitKey,
  parseReplicaKey,
  parseRunKey,
  parseUsageKey,
  replicaKey,
  runKey,
  adapterKey,
  usageKey,
  waitedKey,
} from "./kv-keys.ts";

it("writes the keys that stored entries have", () => {
  expect(runKey({ tenant: "acme", id: "01J" })).toBe("acme.01J");
  expect(adapterKey({ tenant: "acme", adapter: "pirate" })).toBe("acme.pirate");
  expect(holdingKey({ replicaKey: replicaKey({ engine: "e", replica: "r-0" }), adapterKey: "acme.pirate" })).toBe("e.r-0.acme.pirate");
  expect(waitedKey({ durable: "ingest-dataset-received", seq: 7 })).toBe("ingest-dataset-received.7");
  expect(cacheKey({ stage: "chunk", tenant: "acme", hex: "ab" })).toBe("chunk.acme.ab");
  expect(limitKey({ tenant: "acme" })).toBe("acme");
  expect(limitKey({ tenant: "acme", adapter: "pirate" })).toBe("acme.pirate");
  expect(usageKey({ tenant: "acme", day: "2026-11-28", adapter: null, holder: "total" })).toBe("acme.2026-11-28.-.total");
});

it("reads what it wrote", () => {
  expect(parseReplicaKey(replicaKey({ engine: "e", replica: "r-0" }))).toEqual({ engine: "e", replica: "r-0" });
  expect(parseRunKey("acme.01J")).toEqual({ tenant: "acme", id: "01J" });
  expect(parseHoldingKey("e.r-0.acme.pirate")).toEqual({ replicaKey: "e.r-0", adapterKey: "acme.pirate" });
  expect(parseLimitKey("acme")).toEqual({ tenant: "acme", adapter: null });
  expect(parseLimitKey("acme.pirate")).toEqual({ tenant: "acme", adapter: "pirate" });
  for (const adapter of [null, "pirate"]) {
    const of = { tenant: "acme", day: "2026-11-28", adapter, holder: "gateway-1" };
    expect(parseUsageKey(usageKey(of))).toEqual(of);
  }
});
