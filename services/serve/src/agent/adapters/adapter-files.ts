/**
 * Adapters on the disk beside an engine, in folders `<dir>/<hex of the digest>/`. A folder is complete or absent, read-only, and checked
 * before each use. Only the files that the engine reads are fetched, so no file that could run code (a pickle) gets here.
 */
import { createHash, hash, randomUUID } from "node:crypto";
import { type BigIntStats, closeSync, createWriteStream, fstatSync, openSync, read, readFileSync, statSync, writeFileSync } from "node:fs";
import { mkdir, readdir, rename, rm } from "node:fs/promises";
import { basename, join } from "node:path";
import { pipeline } from "node:stream/promises";
import { promisify } from "node:util";
import { adapterFiles, type AdapterParts, scanTensors } from "@loraline/models";
import { type AdapterManifest, adapterManifest, type BlobRef, type Digest } from "@loraline/contracts";
import { getBytes, getJson, type Objects } from "@loraline/objects";
import { explainSystemError, PermanentError } from "@loraline/runtime";
import { hexOf } from "../../lora-names.ts";

const needed = [adapterFiles.config, adapterFiles.weights];

type Adapter = { tenant: string; digest: Digest; manifest: BlobRef };

export interface AdapterFiles {
  pathOf(adapter: { digest: Digest }): string;
  /**
   * Fetches the files that are missing or wrong. Only for an adapter that the engine does not have loaded.
   * @throws PermanentError OBJECT_MISSING, OBJECT_CORRUPT, ADAPTER_FILES_MISSING, DISK_FULL
   */
  ensure(adapter: Adapter): Promise<string>;
  /** Whether the files are the adapter's; reads every byte. */
  verify(adapter: Adapter): Promise<boolean>;
  /** Whether the files were verified here and then written to; cheap, as only `stat` is asked. */
  touched(adapter: { digest: Digest }): boolean;
  /** Whether the files were verified here and not written to since; as cheap. */
  isUnchanged(adapter: { digest: Digest }): boolean;
  /** What is in the files; only after `ensure`. */
  read(adapter: { digest: Digest }): Promise<AdapterParts>;
  /** Removes the folders that are not in `keep` (hex digests) and are older than `graceMs`. */
  collect(keep: ReadonlySet<string>, now: number, graceMs: number): Promise<void>;
}

export function createAdapterFiles({ dir, objects }: { dir: string; objects: Pick<Objects, "get"> }): AdapterFiles {
  const pathOf = ({ digest }: { digest: Digest }): string => join(dir, hexOf(digest));
  /** The result of `stat` for each file when it was verified. */
  const stamps = new Map<string, string>();
  const unneededSince = new Map<string, number>();
  /** What was read of verified files, by digest, for an engine that restarts, and for agents that share a folder. */
  const parts = new Map<Digest, AdapterParts>();

  // Synchronous: the thread pool would cost ten times as much as the call, and each heartbeat checks hundreds of files.
  const stampOf = (path: string): string => needed.map((name) => stampOfFile(statSync(join(path, name), { bigint: true }))).join(" ");

  /** Manifests that were read. They never change, and each proof needs one. */
  const manifests = new Map<string, AdapterManifest>();
  const manifestOf = async ({ tenant, manifest }: Adapter): Promise<AdapterManifest> => {
    const key = `${tenant}/${manifest.digest}`;
    const known = manifests.get(key) ?? (await getJson(objects, tenant, manifest, adapterManifest));
    if (manifests.size >= 2048) manifests.clear();
    manifests.set(key, known);
    return known;
  };
  const filesOf = async (adapter: Adapter): Promise<{ name: string; blob: BlobRef }[]> => {
    const { manifest } = adapter;
    const { files } = await manifestOf(adapter);
    return needed.map((name) => {
      const blob = files.find(({ path }) => path === name)?.blob;
      if (blob === undefined) {
        throw new PermanentError("ADAPTER_FILES_MISSING", `adapter ${manifest.digest} has no ${name}; it needs ${needed.join(" and ")}.`, {
          param: name,
        });
      }
      return { name, blob };
    });
  };

  const verify = async (adapter: Adapter): Promise<boolean> => {
    const path = pathOf(adapter);
    try {
      const before: string[] = [];
      for (const { name, blob } of await filesOf(adapter)) {
        const file = openSync(join(path, name), "r");
        try {
          const stat = fstatSync(file, { bigint: true });
          before.push(stampOfFile(stat));
          if (Number(stat.size) !== blob.size || (await digestOfFile(file, blob.size)) !== blob.digest) return false;
        } finally {
          closeSync(file);
        }
      }
      stamps.set(path, before.join(" "));
      return true;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return false;
      throw error;
    }
  };

  const sinceVerified = (adapter: { digest: Digest }): "unchanged" | "written" | "not verified" => {
    const path = pathOf(adapter);
    const stamp = stamps.get(path);
    if (stamp === undefined) return "not verified";
    try {
      return stampOf(path) === stamp ? "unchanged" : "written";
    } catch {
      return "written";
    }
  };

  const fetch = async (tenant: string, blob: BlobRef, file: string): Promise<void> => {
    const mode = 0o444;
    if (blob.size <= smallBytes) writeFileSync(file, await getBytes(objects, tenant, blob), { flag: "wx", mode });
    else await pipeline(await objects.get(tenant, blob), createWriteStream(file, { flags: "wx", mode }));
  };

  const making = new Map<string, Promise<string>>();
  /** Folders that are being filled now; they are not removed, however long that takes. */
  const filling = new Set<string>();
  const make = async (adapter: Adapter): Promise<string> => {
    const path = pathOf(adapter);
    if (await verify(adapter)) return path;
    const partial = `${path}.${randomUUID()}.partial`;
    filling.add(basename(partial));
    try {
      await mkdir(partial, { recursive: true });
      for (const { name, blob } of await filesOf(adapter)) {
        // Each file is verified while it is fetched. Nobody reads this temporary folder before it is complete.
        await fetch(adapter.tenant, blob, join(partial, name));
      }
      // Two agents of one machine should not share a folder. If they do, what is replaced here has the same bytes.
      await rm(path, { recursive: true, force: true });
      await rename(partial, path);
    } catch (error) {
      await rm(partial, { recursive: true, force: true });
      throw error instanceof PermanentError ? error : explainSystemError(error, `fetching adapter ${adapter.digest} to ${path}`);
    } finally {
      filling.delete(basename(partial));
    }
    if (!(await verify(adapter))) throw new Error(`adapter ${adapter.digest} was written to ${path} but reads back differently`);
    return path;
  };

  return {
    pathOf,
    verify,
    ensure(adapter) {
      // Two versions may have the same bytes, and agents of one process may share the folder.
      const path = pathOf(adapter);
      const made = making.get(path) ?? make(adapter).finally(() => making.delete(path));
      making.set(path, made);
      return made;
    },
    touched: (adapter) => sinceVerified(adapter) === "written",
    isUnchanged: (adapter) => sinceVerified(adapter) === "unchanged",
    async read(adapter) {
      const path = pathOf(adapter);
      const known = parts.get(adapter.digest);
      if (known !== undefined) return known;
      let config: unknown;
      try {
        config = JSON.parse(readFileSync(join(path, adapterFiles.config), "utf8"));
      } catch (error) {
        throw new PermanentError("ADAPTER_CONFIG_INVALID", `${adapterFiles.config} is not JSON: ${(error as Error).message}`, {
          param: adapterFiles.config,
          cause: error,
        });
      }
      const read = { config, tensors: await scanTensors(join(path, adapterFiles.weights)) };
      if (parts.size >= partsKept) parts.clear();
      parts.set(adapter.digest, read);
      return read;
    },
    async collect(keep, now, graceMs) {
      const entries = await readdir(dir).catch(() => []);
      for (const entry of entries) {
        const [hex = ""] = entry.split(".");
        if (filling.has(entry) || (entry === hex && keep.has(hex))) {
          unneededSince.delete(entry);
          continue;
        }
        const since = unneededSince.get(entry) ?? now;
        unneededSince.set(entry, since);
        if (now - since < graceMs || !/^[0-9a-f]{64}(\.[0-9a-f-]+\.partial)?$/.test(entry)) continue;
        await rm(join(dir, entry), { recursive: true, force: true });
        unneededSince.delete(entry);
        stamps.delete(join(dir, entry));
      }
    },
  };
}

/** Adapters whose parts are remembered: names and shapes of tensors, some kilobytes each. */
const partsKept = 256;

const stampOfFile = ({ ino, size, mtimeNs, ctimeNs }: BigIntStats): string => `${ino}/${size}/${mtimeNs}/${ctimeNs}`;

/** Files up to this size, such as configurations, are read in one call: a stream would cost more. Bytes. */
const smallBytes = 64 * 1024;
/** Larger files are read in pieces of this size into one buffer: a stream's own pieces of 64 KiB cost more to read than to digest. */
const pieceBytes = 1024 * 1024;
const readPiece = promisify(read);

async function digestOfFile(file: number, size: number): Promise<Digest> {
  if (size <= smallBytes) return `sha256:${hash("sha256", readFileSync(file))}`;
  const all = createHash("sha256");
  const piece = Buffer.allocUnsafe(pieceBytes);
  for (;;) {
    const { bytesRead } = await readPiece(file, piece, 0, pieceBytes, null);
    if (bytesRead === 0) break;
    all.update(piece.subarray(0, bytesRead));
  }
  return `sha256:${all.digest("hex")}`;
}
