import { createHash } from "node:crypto";
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { BlobRef, Digest } from "@loraline/contracts";
import { describe, expect, it as base } from "vitest";
import { createAdapterFiles } from "./adapter-files.ts";

const it = base.extend<{ dir: string }>({
  dir: async ({}, use) => {
    const dir = await mkdtemp(join(tmpdir(), "loraline-files-"));
    await use(dir);
    await rm(dir, { recursive: true, force: true });
  },
});

/** A store of blobs in memory that counts what is asked of it. */
function store() {
  const blobs = new Map<string, Buffer>();
  const asked: string[] = [];
  const put = (kind: BlobRef["kind"], bytes: Buffer): BlobRef => {
    const digest: Digest = `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
    blobs.set(digest, bytes);
    return { kind, digest, size: bytes.length };
  };
  return {
    asked,
    get: async (_tenant: string, { digest, kind }: Pick<BlobRef, "kind" | "digest">) => {
      asked.push(kind);
      const bytes = blobs.get(digest);
      if (bytes === undefined) throw new Error("missing");
      return (async function* () {
        yield bytes;
      })();
    },
    adapter(seed: string, weights = 0) {
      const files = ["adapter_config.json", "adapter_model.safetensors"].map((path) => ({
        path,
        blob: put("adapter-file", Buffer.from(`{"${path}":"${seed.padStart(weights)}"}`)),
      }));
      const about = {
        version: 1,
        base: { name: "b", revision: "1", digest: `sha256:${"b".repeat(64)}` },
        rank: 4,
        targetModules: ["q"],
        parameters: 1,
      };
      const manifest = put("adapter", Buffer.from(JSON.stringify({ ...about, files })));
      return { tenant: "acme", digest: manifest.digest, manifest };
    },
  };
}

describe("adapter files", () => {
  it("are fetched once, however many ask at once, and again only when they are not whole", async ({ dir }) => {
    const objects = store();
    const adapter = objects.adapter("one");
    const files = createAdapterFiles({ dir, objects });
    const [path] = await Promise.all([files.ensure(adapter), files.ensure(adapter), files.ensure(adapter)]);
    expect(objects.asked.toSorted()).toEqual(["adapter", "adapter-file", "adapter-file"]);
    await files.ensure(adapter);
    expect(objects.asked).toHaveLength(3);
    expect([files.touched(adapter), files.isUnchanged(adapter)]).toEqual([false, true]);
    expect(createAdapterFiles({ dir, objects }).isUnchanged(adapter)).toBe(false);
    await chmod(join(path, "adapter_config.json"), 0o644);
    await writeFile(join(path, "adapter_config.json"), "{}");
    expect([files.touched(adapter), files.isUnchanged(adapter), await files.verify(adapter)]).toEqual([true, false, false]);
    await files.ensure(adapter);
    expect([files.touched(adapter), await files.verify(adapter)]).toEqual([false, true]);
  });

  it("are read to their last byte, however large they are", async ({ dir }) => {
    const objects = store();
    const adapter = objects.adapter("large", 3_000_000);
    const files = createAdapterFiles({ dir, objects });
    const weights = join(await files.ensure(adapter), "adapter_model.safetensors");
    expect(await files.verify(adapter)).toBe(true);
    const bytes = await readFile(weights);
    await chmod(weights, 0o644);
    await writeFile(weights, bytes.with(-1, 0));
    expect(await files.verify(adapter)).toBe(false);
    await writeFile(weights, bytes.subarray(0, -1));
    expect(await files.verify(adapter)).toBe(false);
    await files.ensure(adapter);
    expect(await files.verify(adapter)).toBe(true);
  });

  it("stay while they are needed and for the grace after, then go, with what a dead agent left half-made", async ({ dir }) => {
    const objects = store();
    const files = createAdapterFiles({ dir, objects });
    const [kept, old] = [objects.adapter("kept"), objects.adapter("old")];
    for (const adapter of [kept, old]) await files.ensure(adapter);
    const hex = ({ digest }: { digest: string }) => digest.slice(7);
    const partial = `${hex(old)}.0a1b-2c.partial`;
    await mkdir(join(dir, partial));
    await mkdir(join(dir, "not-ours"));
    const keep = new Set([hex(kept)]);
    const names = async () => (await readdir(dir)).toSorted();
    await files.collect(keep, 1000, 500);
    expect(await names()).toHaveLength(4);
    // Needed once more in between: its time begins anew.
    await files.collect(new Set([hex(kept), hex(old)]), 1400, 500);
    await files.collect(keep, 1600, 500);
    expect(await names()).toEqual([hex(kept), hex(old), "not-ours"].toSorted());
    await files.collect(keep, 2200, 500);
    expect(await names()).toEqual([hex(kept), "not-ours"].toSorted());
  });

  it("are not swept away while they are still being fetched, however long that takes", async ({ dir }) => {
    const objects = store();
    const adapter = objects.adapter("slow");
    const go = Promise.withResolvers<void>();
    const get = async (tenant: string, ref: Pick<BlobRef, "kind" | "digest">) => {
      const bytes = await objects.get(tenant, ref);
      // The second file of the two.
      if (objects.asked.length === 3) await go.promise;
      return bytes;
    };
    const files = createAdapterFiles({ dir, objects: { get } });
    const made = files.ensure(adapter);
    await expect.poll(() => objects.asked).toHaveLength(3);
    await files.collect(new Set([adapter.digest.slice(7)]), 1000, 500);
    await files.collect(new Set([adapter.digest.slice(7)]), 2000, 500);
    go.resolve();
    expect(await readdir(await made)).toEqual(["adapter_config.json", "adapter_model.safetensors"]);
  });
});
