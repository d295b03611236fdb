import { expect, test } from "vitest";
import { bodyOf, typedOf, wrongOf } from "./decide-limits.ts";

test("what is typed is what is sent, and a form that nobody changed changes nothing", () => {
  const entry = { requestsPerMinute: 60, storageBytes: 100 * 1024 ** 3, historyBytes: 12_345, highestPriority: 0, datasets: null };
  const typed = typedOf(entry, true);
  expect(typed).toMatchObject({ requestsPerMinute: "60", tokensPerMinute: "", storageBytes: "100 GiB", historyBytes: "12345" });
  expect(bodyOf(typed)).toEqual({ requests_per_minute: 60, storage_bytes: 100 * 1024 ** 3, history_bytes: 12_345, highest_priority: 0 });
  expect(bodyOf({ ...typed, storageBytes: "1.5 GB", concurrency: " 4 " })).toMatchObject({ storage_bytes: 1.5e9, concurrency: 4 });
  expect(Object.keys(typedOf(undefined, false))).toEqual(["requestsPerMinute", "tokensPerMinute", "concurrency"]);
});

test("what is no amount is told, and zero only where it means something", () => {
  const typed = typedOf(undefined, true);
  const wrong = {
    requestsPerMinute: "0",
    tokensPerMinute: "many",
    concurrency: "1.5",
    storageBytes: "3 apples",
    datasets: "3 GB",
    adapters: "-1",
  };
  expect(wrongOf({ ...typed, ...wrong }).toSorted()).toEqual(Object.keys(wrong).toSorted());
  expect(wrongOf({ ...typed, runsAtOnce: "0", storageBytes: "0", highestPriority: "-2" })).toEqual([]);
});
