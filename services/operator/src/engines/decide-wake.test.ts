import { expect, test } from "vitest";
import { decideWake, isToProve } from "./decide-wake.ts";

const wake = { waitSeconds: 60, idleAfterSeconds: 100, replicas: 2 };
const idle = { wake, replicas: 2, ready: 2, waiting: 0, toProve: false, idleMs: 100_000 };
const asleep = { ...idle, replicas: 0, ready: 0, idleMs: 0 };

test.each([
  ["nobody asks it for long enough", idle, 0],
  ["somebody asked it a moment ago", { ...idle, idleMs: 99_999 }, undefined],
  ["a request waits", { ...idle, waiting: 1 }, undefined],
  ["a version is to be proven", { ...idle, toProve: true }, undefined],
  ["it is starting: whoever it is for may come back only when it is there", { ...idle, ready: 0 }, undefined],
  ["not every gateway is heard", { ...idle, idleMs: null }, undefined],
  ["it is asleep and nobody asks", asleep, undefined],
  ["it is asleep and a request waits", { ...asleep, waiting: 1 }, 2],
  ["it is asleep, a request waits, and no other gateway is heard", { ...asleep, waiting: 1, idleMs: null }, 2],
  ["it is asleep and a version is to be proven", { ...asleep, toProve: true }, 2],
  ["it was made with one replica", { ...idle, replicas: 1, ready: 1, idleMs: 0 }, 2],
  ["an autoscaler gave it more", { ...idle, wake: { ...wake, autoscaled: true }, replicas: 4, idleMs: 0 }, undefined],
  ["an autoscaler gave it more, and nobody asks", { ...idle, wake: { ...wake, autoscaled: true }, replicas: 4 }, 0],
  ["somebody else scales it", { ...asleep, wake: { waitSeconds: 60, replicas: 2 }, waiting: 3 }, undefined],
])("%s", (_what, sight, expected) => {
  expect(decideWake(sight)).toBe(expected);
});

test("a version for which there is no room, or that was proven or refused, keeps no engine awake", () => {
  const of = (over: object) => isToProve({ versions: [{ status: "desired", servedAt: null, unplaced: null, ...over } as never] });
  expect([of({}), of({ unplaced: { code: "NO_ROOM", message: "" } }), of({ servedAt: "now" }), of({ status: "refused" })]).toEqual([
    true,
    false,
    false,
    false,
  ]);
});
