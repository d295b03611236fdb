import { adapterManifest } from "@loraline/contracts";
import { expect, test } from "vitest";
import { adapterManifestFor } from "./adapter-manifest.ts";

const digest = `sha256:${"a".repeat(64)}` as const;
const base = { name: "b", revision: "r", digest };
const file = (path: string) => ({ path, blob: { kind: "adapter-file", digest, size: 1 } as const });

test("equal adapters give equal bytes, whatever order things came in", () => {
  const adapter = { rank: 8, target_modules: ["v_proj", "k_proj", "q_proj"], parameters: 5, files: [] };
  const one = adapterManifestFor({ base }, adapter, [file("b"), file("a")]);
  const other = adapterManifestFor(
    // Keys in another order, and more of them, as a parser may give them.
    { base: { digest, revision: "r", name: "b", extra: 1 } as typeof base },
    { ...adapter, target_modules: ["q_proj", "v_proj", "k_proj"] },
    [file("a"), { blob: { size: 1, digest, kind: "adapter-file" }, path: "b" }],
  );
  expect(JSON.stringify(one)).toBe(JSON.stringify(other));
  expect(adapterManifest.parse(one)).toEqual(one);
  expect(one.targetModules).toEqual(["k_proj", "q_proj", "v_proj"]);
});
