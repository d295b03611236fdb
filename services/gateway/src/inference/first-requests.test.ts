import { expect, test } from "vitest";
import { createFirstRequests, newFor } from "./first-requests.ts";

const servedAt = "2026-11-28T12:00:00.000Z";
const now = Date.parse(servedAt);
const version = (engineName: string, at = servedAt) => ({ engineName, servedAt: at, createdAt: at });

test("the first request to a new version is told from others", () => {
  const isFirst = createFirstRequests();
  expect([isFirst(version("a"), now), isFirst(version("a"), now + 1), isFirst(version("b"), now)]).toEqual([true, false, true]);
  expect(isFirst(version("c"), now + newFor)).toBe(false);
  expect(isFirst({ engineName: "d", servedAt: null, createdAt: servedAt }, now)).toBe(true);
});

test("versions that are new no more are forgotten", () => {
  const seen = new Map<string, number>();
  const isFirst = createFirstRequests(seen);
  for (let n = 0; n < 1000; n++) isFirst(version(`v${n}`), now);
  isFirst(version("old"), now + newFor);
  isFirst(version("next", new Date(now + newFor).toISOString()), now + newFor);
  expect([...seen.keys()]).toEqual(["next"]);
});
