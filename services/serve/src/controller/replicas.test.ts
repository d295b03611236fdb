import type { ReplicaEntry, ReplicaTable } from "@loraline/bus";
import type { ReplicaReport } from "@loraline/contracts";
import { createLog } from "@loraline/runtime";
import { expect, it } from "vitest";
import { createReplicaSweep } from "./replicas.ts";
import { replicaFreshMs } from "./versions/bucket-replicas.ts";

function swept({ present = [] as string[] } = {}) {
  const at = { now: 0, forgotten: [] as string[], cleared: [] as string[], dropped: [] as string[] };
  const table: Pick<ReplicaTable, "entries" | "forget" | "orphans" | "drop"> = {
    *entries() {
      yield { key: "e.silent", heardAt: 0 } as ReplicaEntry;
    },
    orphans: () => [{ key: "e.gone", since: 0 }],
    forget: (key) => at.forgotten.push(key),
    drop: (key) => at.dropped.push(key),
  };
  const sweep = createReplicaSweep({
    table,
    replicas: { get: async (key) => (present.includes(key) ? { key, value: {} as ReplicaReport, revision: 1 } : undefined) },
    holdings: { clear: async (filter) => void at.cleared.push(filter) },
    goneMs: 60_000,
    log: createLog({ service: "test", level: "silent" }),
    signal: new AbortController().signal,
    now: () => at.now,
  });
  return { at, sweep };
}

it("forgets a replica that is silent, and removes what it wrote once it is gone for good", async () => {
  const { at, sweep } = swept();
  sweep();
  expect(at.forgotten).toEqual([]);
  at.now = replicaFreshMs + 1;
  sweep();
  expect([at.forgotten, at.cleared]).toEqual([["e.silent"], []]);
  at.now = 60_000;
  sweep();
  sweep();
  await expect.poll(() => at.dropped).toEqual(["e.gone"]);
  expect(at.cleared).toEqual(["e.gone.>"]);
});

it("removes nothing of a replica that only this controller did not hear of", async () => {
  const { at, sweep } = swept({ present: ["e.gone"] });
  at.now = 60_000;
  sweep();
  await new Promise((resolve) => setImmediate(resolve));
  expect([at.cleared, at.dropped]).toEqual([[], []]);
});
