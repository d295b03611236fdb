import type { ReplicaAdapter } from "@loraline/contracts";
import { describe, expect, it } from "vitest";
import { bucketReplicas, replicaFreshMs, type VersionBuckets } from "./bucket-replicas.ts";
import { now, replica, time, withVersions } from "./versions-under-test.ts";

const state = withVersions(1);
const [version] = state.versions;
if (version === undefined) throw new Error("no version");
const of = (over: Partial<typeof version>, ...replicas: ReturnType<typeof replica>[]): VersionBuckets =>
  bucketReplicas({ ...version, ...over }, state.engine, replicas, now);

describe("a replica's bucket", () => {
  it.each<[keyof VersionBuckets, ReplicaAdapter["state"] | Partial<ReplicaAdapter> | undefined]>([
    ["proven", "proven"],
    ["pending", undefined],
    ["pending", "loading"],
    ["pending", "retrying"],
    ["pending", "draining"],
    ["refused", "refused"],
    ["refused", { state: "refused", blame: "adapter" }],
    ["refused", { state: "quarantined", blame: null }],
    ["troubled", { state: "quarantined", blame: "replica" }],
    ["troubled", { state: "proven", proof: null }],
  ])("is %s when it reports %j", (bucket, given) => {
    const { holders, ...buckets } = of({}, replica("a", state, given === undefined ? {} : { 1: given }));
    expect(holders).toHaveLength(1);
    for (const [name, found] of Object.entries(buckets)) expect([name, found.length]).toEqual([name, name === bucket ? 1 : 0]);
  });

  it("is away when it is not ready or silent, elsewhere when placement chose others, and none for another engine's", () => {
    const held = { 1: "proven" } as const;
    const buckets = of(
      { replicas: ["b"] },
      replica("a", state, held),
      replica("b", state, held),
      replica("c", state, held, { ready: false }),
      replica("d", state, held, { at: time(replicaFreshMs) }),
      replica("e", state, held, { engine: "other" }),
    );
    expect(buckets).toMatchObject({ proven: [{ replica: "b" }], holders: [{ replica: "b" }], elsewhere: ["a"], away: ["c", "d"] });
  });
});
