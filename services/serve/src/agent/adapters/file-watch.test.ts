import type { Digest } from "@loraline/contracts";
import { describe, expect, it } from "vitest";
import { digestOf } from "../agent-under-test.ts";
import { createFileWatch } from "./file-watch.ts";

const hex = (n: number): string => digestOf(n).slice("sha256:".length);

function watched(count: number) {
  const at = {
    wanted: new Map<string, { digest: Digest }>(Array.from({ length: count }, (_, i) => [`n${i}`, { digest: digestOf(i) }])),
    listed: new Map<string, string | null>() as Map<string, string | null> | undefined,
    busy: new Set<string>(),
    changed: new Set<Digest>(),
    looked: [] as Digest[],
    found: [] as string[],
    kept: [] as ReadonlySet<string>[],
  };
  for (const [name, { digest }] of at.wanted) at.listed?.set(name, `/adapters/${digest.slice(7)}`);
  const watch = createFileWatch({
    files: {
      touched({ digest }) {
        at.looked.push(digest);
        return at.changed.has(digest);
      },
      async collect(keep) {
        at.kept.push(keep);
      },
    },
    wanted: at.wanted,
    listed: () => at.listed,
    isBusy: (name) => at.busy.has(name),
    onTouched: (name) => at.found.push(name),
    now: () => 0,
    perLook: 2,
  });
  return { at, watch };
}

describe("the file watch", () => {
  it("looks at a few adapters each time, at all in turn, and clears away after the last", async () => {
    const { at, watch } = watched(5);
    await watch.look();
    expect([at.looked, at.kept]).toEqual([[digestOf(0), digestOf(1)], []]);
    await watch.look();
    await watch.look();
    expect(at.looked).toHaveLength(5);
    expect(at.kept).toHaveLength(1);
    await watch.look();
    expect(at.looked.at(-1)).toBe(digestOf(1));
  });

  it("tells of files that changed, but not of adapters that are worked on or not loaded", async () => {
    const { at, watch } = watched(2);
    at.changed = new Set([digestOf(0), digestOf(1)]);
    at.busy.add("n1");
    await watch.look();
    expect(at.found).toEqual(["n0"]);
    at.listed?.delete("n0");
    await watch.look();
    expect(at.found).toEqual(["n0"]);
  });

  it("keeps files of what is wanted and of what the engine lists, which may read them at any moment", async () => {
    const { at, watch } = watched(1);
    at.listed = new Map([["leaving", `/adapters/${hex(7)}`]]);
    await watch.look();
    expect(at.kept).toEqual([new Set([hex(0), hex(7)])]);
  });

  it("clears nothing away while it is not known what the engine lists", async () => {
    const { at, watch } = watched(1);
    at.listed = undefined;
    await watch.look();
    expect([at.looked, at.kept]).toEqual([[], []]);
  });
});
