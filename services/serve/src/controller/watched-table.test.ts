import { expect, it } from "vitest";
import { createWatchedTable } from "./watched-table.ts";

type Change = (key: string, value: number | undefined, revision: number) => void;

it("tells each follower of what is there, and then of every change", async () => {
  let change: Change = () => {};
  const table = await createWatchedTable<number>(
    {
      async watch({ onChange, onReady }) {
        change = onChange;
        onChange("a", 1, 1);
        onReady?.();
      },
    },
    new AbortController().signal,
  );
  const seen: unknown[] = [];
  table.follow((...what) => seen.push(what));
  change("b", 2, 2);
  change("a", undefined, 3);
  expect(seen).toEqual([
    ["a", 1, undefined],
    ["b", 2, undefined],
    ["a", undefined, 1],
  ]);
  expect([table.get("a"), [...table.entries()]]).toEqual([undefined, [["b", 2]]]);
});
