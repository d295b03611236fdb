/** One contract, kept by both stores, against real servers. */
import { createReadStream } from "node:fs";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { PutObjectCommand, S3Client } from "@aws-sdk/client-s3";
import type { BlobRef, Digest } from "@loraline/contracts";
import { createLog } from "@loraline/runtime";
import { spawnNatsServer, startProxy, test as fixtures } from "@loraline/testkit";
import { jetstreamManager } from "@nats-io/jetstream";
import { Objm } from "@nats-io/obj";
import { headers } from "@nats-io/transport-node";
import { describe, expect } from "vitest";
import {
  createJetStreamObjects,
  createS3Objects,
  digestOf,
  getBytes,
  getJson,
  type Objects,
  getToFile,
  objectKey,
  putJson,
  removeUnfinishedBlobs,
  watchedObjects,
} from "./index.ts";

const test = fixtures
  .extend("dir", async ({}, { onCleanup }) => {
    const dir = await mkdtemp(join(tmpdir(), "loraline-objects-"));
    onCleanup(() => rm(dir, { recursive: true }));
    return dir;
  })
  .extend("jetStream", async ({ nc, dir }) => ({
    objects: await createJetStreamObjects(nc, { spoolDir: dir }),
    /** Puts other bytes under a key, behind the back of the store. */
    tamper: async (key: string, bytes: Uint8Array) => {
      await (await new Objm(nc).open("objects")).putBlob({ name: key }, bytes);
    },
  }))
  .extend("overS3", async ({ s3, dir }, { onCleanup }) => {
    const objects = createS3Objects({ ...s3, spoolDir: dir });
    const { endpoint, region, credentials, bucket } = s3;
    const client = new S3Client({ endpoint, region, credentials, forcePathStyle: true });
    onCleanup(() => {
      objects[Symbol.dispose]();
      client.destroy();
    });
    return {
      objects,
      tamper: async (key: string, bytes: Uint8Array) => {
        await client.send(new PutObjectCommand({ Bucket: bucket, Key: key, Body: bytes }));
      },
    };
  });

const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
const collect = async <T>(items: AsyncIterable<T>): Promise<T[]> => {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
};
async function* stream(...parts: (string | Error)[]): AsyncGenerator<Uint8Array> {
  for (const part of parts) {
    await sleep(1);
    if (part instanceof Error) throw part;
    yield new TextEncoder().encode(part);
  }
}
/** Different in every place, so that a chunk lost or swapped shows. */
async function* megabytes(count: number): AsyncGenerator<Uint8Array> {
  for (let index = 0; index < count; index++) {
    const block = Buffer.alloc(1024 * 1024);
    for (let at = 0; at < block.length; at += 4) block.writeUInt32LE((index * 2_654_435_761 + at) >>> 0, at);
    yield block;
    await sleep(0);
  }
}
const nowhere: Digest = `sha256:${"0".repeat(64)}`;

for (const backend of ["jetStream", "overS3"] as const) {
  // A fixture is asked for by its name, so each store has its own entry to the same tests.
  const it = test.extend("store", backend === "jetStream" ? async ({ jetStream }) => jetStream : async ({ overS3 }) => overS3);

  describe(`objects ${backend === "jetStream" ? "in JetStream" : "over S3"}`, () => {
    it("stores bytes, text, streams and files, and gives them back", async ({ store: { objects }, tenant, dir }) => {
      const file = join(dir, "file");
      await writeFile(file, "from a file");
      const cases = [
        [new TextEncoder().encode("bytes"), "bytes"],
        ["täxt", "täxt"],
        [stream("from ", "a ", "stream"), "from a stream"],
        [createReadStream(new URL(import.meta.url)), await readFile(new URL(import.meta.url), "utf8")],
        [{ file }, "from a file"],
        ["", ""],
      ] as const;
      for (const [source, expected] of cases) {
        const ref = await objects.put(tenant, "raw", source);
        expect(ref).toEqual({ kind: "raw", digest: digestOf(expected), size: Buffer.byteLength(expected) });
        expect(text(await getBytes(objects, tenant, ref))).toBe(expected);
        expect(await objects.head(tenant, ref)).toEqual({ size: ref.size });
      }
      expect((await readdir(dir)).filter((name) => name !== "file")).toEqual([]); // nothing spooled is left
    });

    it("carries a blob of many parts both ways, as a stream", { timeout: 120_000 }, async ({ store: { objects }, tenant }) => {
      const ref = await objects.put(tenant, "raw", megabytes(33));
      expect(ref.size).toBe(33 * 1024 * 1024);
      let read = 0;
      for await (const chunk of await objects.get(tenant, ref)) read += chunk.byteLength;
      expect(read).toBe(ref.size); // and the digest was right, or the loop had thrown
    });

    it("reads no faster than its reader", { timeout: 120_000 }, async ({ store: { objects }, tenant }) => {
      const ref = await objects.put(tenant, "raw", megabytes(96));
      const before = process.memoryUsage().arrayBuffers;
      let highest = 0;
      let chunks = 0;
      for await (const _ of await objects.get(tenant, ref)) {
        if (++chunks > 20) continue;
        await sleep(20);
        highest = Math.max(highest, process.memoryUsage().arrayBuffers - before);
      }
      expect(highest).toBeLessThan(48 * 1024 * 1024);
    });

    it("does no work for a blob that exists", async ({ store: { objects }, tenant }) => {
      const ref = await objects.put(tenant, "shard", "the same");
      const unreadable = stream(new Error("was read"));
      expect(await objects.put(tenant, "shard", unreadable, { digest: ref.digest })).toEqual(ref);
      expect(await objects.put(tenant, "shard", stream("the ", "same"))).toEqual(ref);
    });

    it("keeps one of several equal blobs written at once", async ({ store: { objects }, tenant }) => {
      const refs = await Promise.all(Array.from({ length: 5 }, () => objects.put(tenant, "shard", stream("equal", " content"))));
      for (const ref of refs) expect(ref).toEqual(refs[0]);
      // As a set: rclone lists a key twice when two writers put it at the same moment.
      expect(new Set((await collect(objects.list(tenant, "shard"))).map(({ digest }) => digest))).toEqual(new Set([refs[0]?.digest]));
      expect(text(await getBytes(objects, tenant, refs[0] as BlobRef))).toBe("equal content");
    });

    it("checks a digest that it is told, and stores nothing that differs", async ({ store: { objects }, tenant }) => {
      const digest = digestOf("expected");
      expect(await objects.put(tenant, "raw", stream("expec", "ted"), { digest })).toMatchObject({ digest, size: 8 });
      for (const source of ["other", stream("ot", "her")]) {
        await expect(objects.put(tenant, "raw", source, { digest: nowhere })).rejects.toMatchObject({ code: "DIGEST_MISMATCH" });
      }
      expect(await objects.head(tenant, { kind: "raw", digest: nowhere })).toBeUndefined();
    });

    it("keeps nothing of a source that fails", async ({ store: { objects }, tenant, dir }) => {
      const failing = () => stream("begun ", new Error("connection lost"));
      await expect(objects.put(tenant, "raw", failing())).rejects.toThrow("connection lost");
      await expect(objects.put(tenant, "raw", failing(), { digest: nowhere })).rejects.toThrow("connection lost");
      expect(await collect(objects.list(tenant, "raw"))).toEqual([]);
      expect(await readdir(dir)).toEqual([]);
    });

    it("says what is missing", async ({ store: { objects }, tenant }) => {
      const ref = { kind: "adapter", digest: nowhere } as const;
      await expect(objects.get(tenant, ref)).rejects.toMatchObject({
        code: "OBJECT_MISSING",
        message: expect.stringContaining(objectKey(tenant, ref)),
      });
      expect(await objects.head(tenant, ref)).toBeUndefined();
      await objects.delete(tenant, ref); // no error
    });

    it("detects content that is not what its name says", async ({ store: { objects, tamper }, tenant, dir }) => {
      const ref = { kind: "adapter-file", digest: digestOf("good") } as const;
      await tamper(objectKey(tenant, ref), new TextEncoder().encode("evil"));
      await expect(getBytes(objects, tenant, ref)).rejects.toMatchObject({ code: "OBJECT_CORRUPT" });
      await expect(getToFile(objects, tenant, ref, join(dir, "adapter/model"))).rejects.toMatchObject({ code: "OBJECT_CORRUPT" });
      expect(await readdir(join(dir, "adapter"))).toEqual([]);
    });

    it("reads no more into memory than was said to be there", { timeout: 120_000 }, async ({ store: { objects }, tenant }) => {
      const large = await objects.put(tenant, "adapter-file", megabytes(64));
      let read = 0;
      const counted: Pick<Objects, "get"> = {
        get: async (...of) => {
          const source = await objects.get(...of);
          return (async function* () {
            for await (const part of source) {
              read += part.byteLength;
              yield part;
            }
          })();
        },
      };
      await expect(getBytes(counted, tenant, { ...large, size: 100 })).rejects.toMatchObject({ code: "OBJECT_INVALID" });
      expect(read).toBeLessThan(8 * 1024 ** 2);
    });

    it("lists what one tenant has of one kind", async ({ store: { objects }, tenant }) => {
      const refs = await Promise.all(Array.from({ length: 12 }, (_, index) => objects.put(tenant, "records", `record ${index}`)));
      await objects.put(tenant, "report", "another kind");
      await objects.put(`${tenant}-2`, "records", "another tenant");
      const byDigest = (a: BlobRef, b: BlobRef) => a.digest.localeCompare(b.digest);
      expect((await collect(objects.list(tenant, "records"))).toSorted(byDigest)).toEqual(refs.toSorted(byDigest));
    });

    it("deletes, and stores again what was deleted", async ({ store: { objects }, tenant }) => {
      const ref = await objects.put(tenant, "checkpoint", "come back");
      await objects.delete(tenant, ref);
      expect(await objects.head(tenant, ref)).toBeUndefined();
      expect(await collect(objects.list(tenant, "checkpoint"))).toEqual([]);
      expect(await objects.put(tenant, "checkpoint", "come back")).toEqual(ref);
      expect(text(await getBytes(objects, tenant, ref))).toBe("come back");
    });

    it("tells of every blob when it was stored, and deletes only what was not stored again since", async ({
      store: { objects },
      tenant,
    }) => {
      const mine = async () => (await collect(objects.stored(tenant)))[0];
      const before = Date.now();
      const ref = await objects.put(tenant, "raw", "same bytes");
      const first = await mine();
      expect(first).toMatchObject({ tenant, ...ref, storedAt: expect.any(Number) });
      expect(Math.abs((first?.storedAt ?? 0) - before)).toBeLessThan(5000);
      await sleep(2100); // times of S3 may be whole seconds
      expect(await objects.put(tenant, "raw", "same bytes")).toEqual(ref);
      const between = await mine();
      await sleep(2100);
      expect(await objects.touch(tenant, ref)).toEqual({ size: ref.size });
      const again = await mine();
      expect(again?.storedAt).toBeGreaterThan(between?.storedAt ?? 0);
      expect(between?.storedAt).toBeGreaterThan(first?.storedAt ?? 0);
      expect(await objects.delete(tenant, ref, { revision: first?.revision })).toBe(false);
      expect(text(await getBytes(objects, tenant, ref))).toBe("same bytes");
      expect(await objects.delete(tenant, ref, { revision: again?.revision })).toBe(true);
      expect(await objects.head(tenant, ref)).toBeUndefined();
      expect(await objects.touch(tenant, ref)).toBeUndefined();
      expect(await objects.delete(tenant, ref, { revision: again?.revision })).toBe(true);
      expect(await collect(objects.stored(tenant))).toEqual([]);
    });

    it("loses nothing that is stored while the same bytes are being deleted", async ({ store: { objects }, tenant }) => {
      const ref = await objects.put(tenant, "raw", "contested");
      for (let round = 0; round < 10; round++) {
        const [stale] = await collect(objects.stored(tenant));
        const [put] = await Promise.all([
          objects.put(tenant, "raw", stream("contested")),
          objects.delete(tenant, ref, { revision: stale?.revision }),
        ]);
        // Over S3 the writer looks afterwards, as `Objects.delete` says.
        if (backend === "overS3" && (await objects.head(tenant, ref)) === undefined) await objects.put(tenant, "raw", "contested");
        expect(text(await getBytes(objects, tenant, put)), `round ${round}`).toBe("contested");
      }
    });

    it("lets no name reach out of its tenant", async ({ store: { objects }, tenant }) => {
      const ref = await objects.put(tenant, "raw", "mine");
      for (const wrong of ["..", "", "a/b", `${tenant}/raw`]) {
        await expect(objects.get(wrong, ref)).rejects.toMatchObject({ code: "BAD_TENANT" });
      }
      const digest = "sha256:../../secret" as Digest;
      await expect(objects.get(tenant, { kind: "raw", digest })).rejects.toMatchObject({ code: "BAD_REFERENCE" });
    });

    it("reads and writes JSON and files", async ({ store: { objects }, tenant, dir }) => {
      const ref = await putJson(objects, tenant, "report", { rows: 3 });
      expect(await getJson(objects, tenant, ref)).toEqual({ rows: 3 });
      const refuse = {
        parse: () => {
          throw new Error("rows: expected at least 4");
        },
      };
      await expect(getJson(objects, tenant, ref, refuse)).rejects.toMatchObject({
        code: "OBJECT_INVALID",
        message: expect.stringContaining("rows: expected at least 4"),
      });
      await getToFile(objects, tenant, ref, join(dir, "deep/er/report.json"));
      expect(await readdir(join(dir, "deep/er"))).toEqual(["report.json"]);
      expect(await readFile(join(dir, "deep/er/report.json"), "utf8")).toBe(`{"rows":3}`);
    });
  });
}

describe("jetStream only", () => {
  test("a blob survives the server's death", async ({ tenant, onTestFinished }) => {
    const server = await spawnNatsServer();
    onTestFinished(() => server[Symbol.asyncDispose]());
    const nc = await server.connect({ reconnectTimeWait: 50, maxReconnectAttempts: -1 });
    onTestFinished(() => nc.close());
    const objects = await createJetStreamObjects(nc);
    const ref = await objects.put(tenant, "raw", megabytes(3));
    const reconnected = (async () => {
      for await (const { type } of nc.status()) if (type === "reconnect") return;
    })();
    await server.kill();
    await server.start();
    await reconnected;
    expect(await objects.head(tenant, ref)).toEqual({ size: ref.size });
    expect((await getBytes(objects, tenant, ref)).byteLength).toBe(ref.size);
  });

  test("a full store says so, and keeps nothing half-made", async ({ nc, tenant, dir }) => {
    const objects = await createJetStreamObjects(nc, { bucket: "small", maxBytes: 4 * 1024 * 1024, spoolDir: dir });
    await expect(objects.put(tenant, "raw", megabytes(8))).rejects.toMatchObject({ name: "UnavailableError", code: "STORE_FULL" });
    const small = await objects.put(tenant, "raw", megabytes(2)); // there is room again
    expect((await getBytes(objects, tenant, small)).byteLength).toBe(small.size);
  });

  test("deleted bytes are nowhere on the server's disk, nor are those of failed and of doubled uploads", async ({ tenant, dir }) => {
    await using server = await spawnNatsServer({ storeDir: join(dir, "nats") });
    await using nc = await server.connect().then((nc) => ({ nc, [Symbol.asyncDispose]: () => nc.close() }));
    const objects = await createJetStreamObjects(nc.nc, { spoolDir: dir });
    const holds = async (word: string): Promise<boolean> => {
      const files = await readdir(join(dir, "nats"), { recursive: true, withFileTypes: true });
      const bytes = await Promise.all(files.filter((file) => file.isFile()).map((file) => readFile(join(file.parentPath, file.name))));
      return bytes.some((one) => one.includes(word));
    };
    await objects.put(tenant, "raw", "kept kept kept ");
    const secret = "SECRET-IN-A-BLOB ".repeat(100_000);
    const refs = await Promise.all([1, 2, 3].map(() => objects.put(tenant, "raw", secret)));
    await objects.put(tenant, "records", "kept, too");
    expect(await holds("SECRET-IN-A-BLOB")).toBe(true);
    await expect(objects.put(tenant, "raw", stream("SECRET-THAT-FAILED", new Error("gone")), { digest: nowhere })).rejects.toThrow("gone");
    await objects.delete(tenant, refs[0] as BlobRef);
    expect(await holds("SECRET-")).toBe(false);
    expect(await holds("kept, too")).toBe(true);
    const { state } = await (await jetstreamManager(nc.nc)).streams.info("OBJ_objects");
    expect(state.num_subjects).toBe(4); // two entries, two chunks: nothing stays of what was deleted
  });

  test("what a killed eraser left is finished later", async ({ nc, tenant }) => {
    const objects = await createJetStreamObjects(nc, { bucket: "half" });
    const ref = await objects.put(tenant, "raw", "half erased");
    const jsm = await jetstreamManager(nc);
    const subject = `$O.half.M.${Buffer.from(objectKey(tenant, ref)).toString("base64").replaceAll("+", "-").replaceAll("/", "_")}`;
    const entry = (await jsm.streams.getMessage("OBJ_half", { last_by_subj: subject }))?.json<object>();
    // It had written its mark, and died before it removed the chunks.
    const rollup = headers();
    rollup.set("Nats-Rollup", "sub");
    await jsm.jetstream().publish(subject, JSON.stringify({ ...entry, deleted: true, size: 0, chunks: 0 }), { headers: rollup });
    expect(await removeUnfinishedBlobs(nc, { bucket: "half" })).toBe(1);
    expect((await jsm.streams.info("OBJ_half")).state.messages).toBe(0);
    expect(await objects.put(tenant, "raw", "half erased")).toEqual(ref);
  });

  test("chunks of a writer that was killed are removed, and only those", async ({ nc, tenant }) => {
    const objects = await createJetStreamObjects(nc, { bucket: "crashed" });
    const kept = await objects.put(tenant, "raw", megabytes(2));
    const jsm = await jetstreamManager(nc);
    // What a process leaves that died between its first chunk and the last step of its put.
    await jsm.jetstream().publish("$O.crashed.C.ABANDONED", new Uint8Array(1000));
    expect(await removeUnfinishedBlobs(nc, { bucket: "crashed" })).toBe(0); // too young: its writer may be alive
    expect(await removeUnfinishedBlobs(nc, { bucket: "crashed", now: Date.now() + 2 * 60 * 60_000 })).toBe(1);
    const { state } = await jsm.streams.info("OBJ_crashed", { subjects_filter: "$O.crashed.C.ABANDONED" });
    expect(state.subjects ?? {}).toEqual({});
    expect((await getBytes(objects, tenant, kept)).byteLength).toBe(kept.size);
  });

  test(
    "blobs that are used again while all are listed are in the list, and keep their chunks",
    { timeout: 120_000 },
    async ({ nc, tenant }) => {
      const objects = await createJetStreamObjects(nc, { bucket: "busy" });
      const refs = await Promise.all(Array.from({ length: 20 }, async (_, n) => objects.put(tenant, "raw", `blob ${n}`)));
      let go = true;
      const users = refs.slice(0, 8).map(async (ref) => {
        while (go) await objects.touch(tenant, ref);
      });
      try {
        for (let n = 0; n < 40; n++) {
          const listed = await collect(objects.stored(tenant));
          expect(listed.map(({ digest }) => digest).toSorted(), "each once").toEqual(refs.map(({ digest }) => digest).toSorted());
          expect(await removeUnfinishedBlobs(nc, { bucket: "busy", now: Date.now() + 2 * 60 * 60_000 })).toBe(0);
        }
      } finally {
        go = false;
        await Promise.all(users);
      }
      for (const ref of refs) expect((await getBytes(objects, tenant, ref)).byteLength).toBe(ref.size);
    },
  );
});

describe("a store that is away", () => {
  const patience = { connect: 300, answer: 300, part: 500 };
  const log = createLog({ service: "test", level: "silent" });

  test("over S3, however it is away, is no fault of any blob", { timeout: 60_000 }, async ({ s3, tenant }) => {
    await using proxy = await startProxy(s3.endpoint);
    using objects = createS3Objects({ ...s3, endpoint: proxy.url, patience });
    const ref = await objects.put(tenant, "raw", "kept");
    for (const [how, why] of [
      ["refused", /connect ECONNREFUSED 127\.0\.0\.1:\d+/],
      ["silent", /requestTimeout|ETIMEDOUT/],
      [503, /HTTP 503/],
      [502, /HTTP 502/],
    ] as const) {
      await proxy.cut(how);
      const away = { code: "STORE_UNAVAILABLE", message: expect.stringMatching(why) };
      await expect(objects.put(tenant, "raw", "new"), String(how)).rejects.toMatchObject(away);
      await expect(getBytes(objects, tenant, ref), String(how)).rejects.toMatchObject(away);
      await expect(objects.head(tenant, ref), String(how)).rejects.toMatchObject(away);
      await expect(collect(objects.list(tenant, "raw")), String(how)).rejects.toMatchObject(away);
      await expect(objects.delete(tenant, ref), String(how)).rejects.toMatchObject(away);
      await proxy.restore();
    }
    expect(text(await getBytes(objects, tenant, ref))).toBe("kept");
  });

  test("over S3 in the middle of a blob, by breaking off or falling silent", { timeout: 60_000 }, async ({ s3, tenant }) => {
    await using proxy = await startProxy(s3.endpoint);
    using objects = createS3Objects({ ...s3, endpoint: proxy.url, patience: { ...patience, part: 20_000 } });
    const ref = await objects.put(tenant, "raw", megabytes(32));
    for (const how of ["refused", "silent"] as const) {
      const reading = (async () => {
        let read = 0;
        for await (const chunk of await objects.get(tenant, ref)) {
          if (read === 0) await proxy.cut(how);
          read += chunk.byteLength;
        }
      })();
      await expect(reading).rejects.toMatchObject({ code: "STORE_UNAVAILABLE" });
      await proxy.restore();
    }
    const writing = objects.put(
      tenant,
      "raw",
      (async function* () {
        yield* megabytes(40);
        yield new TextEncoder().encode("another blob");
      })(),
    );
    await sleep(200);
    await proxy.cut("refused");
    await expect(writing).rejects.toMatchObject({ code: "STORE_UNAVAILABLE" });
  });

  test("a source that fails is not the store's doing", async ({ s3, tenant, nc }) => {
    using overS3 = createS3Objects({ ...s3, patience });
    for (const objects of [overS3, await createJetStreamObjects(nc)]) {
      const broken = Object.assign(new Error("the hub hung up"), { code: "ECONNRESET" });
      const putting = objects.put(tenant, "raw", stream("a", broken), { digest: digestOf("ab") });
      await expect(putting).rejects.toBe(broken);
    }
  });

  test("what only whoever runs the line can mend is told apart, and says what to do", { timeout: 60_000 }, async ({ s3, tenant }) => {
    using wrongBucket = createS3Objects({ ...s3, bucket: "not-there", patience });
    const noBucket = { code: "STORE_REFUSED", message: expect.stringMatching(/bucket "not-there".*Create it/) };
    await expect(wrongBucket.put(tenant, "raw", "x")).rejects.toMatchObject(noBucket);
    await expect(getBytes(wrongBucket, tenant, { kind: "raw", digest: nowhere })).rejects.toMatchObject(noBucket);
    using stranger = createS3Objects({ ...s3, credentials: { accessKeyId: "somebody", secretAccessKey: "else" }, patience });
    const noAccess = { code: "STORE_REFUSED", message: expect.stringMatching(/HTTP 40[13].*mend credentials/) };
    await expect(stranger.put(tenant, "raw", "x")).rejects.toMatchObject(noAccess);
    await expect(getBytes(stranger, tenant, { kind: "raw", digest: nowhere })).rejects.toMatchObject(noAccess);
  });

  test("in JetStream: a server that was killed", { timeout: 60_000 }, async ({ tenant }) => {
    await using server = await spawnNatsServer();
    const nc = await server.connect({ maxReconnectAttempts: -1, reconnectTimeWait: 100 });
    const objects = await createJetStreamObjects(nc, { timeoutMs: 500 });
    const ref = await objects.put(tenant, "raw", "kept");
    await server.kill();
    const away = { code: "STORE_UNAVAILABLE", message: expect.stringContaining('store "objects" in NATS') };
    await expect(objects.put(tenant, "raw", "new")).rejects.toMatchObject(away);
    await expect(getBytes(objects, tenant, ref)).rejects.toMatchObject(away);
    await expect(objects.head(tenant, ref)).rejects.toMatchObject(away);
    await server.start();
    await expect.poll(() => getBytes(objects, tenant, ref).then(text, () => undefined), { timeout: 60_000 }).toBe("kept");
    await (await jetstreamManager(nc)).streams.delete("OBJ_objects");
    await expect(objects.put(tenant, "raw", "new")).rejects.toMatchObject({ code: expect.stringMatching(/^STORE_(REFUSED|UNAVAILABLE)$/) });
    await nc.close();
  });

  test("is noticed by whoever watches it, and so is its return, with nobody asking", { timeout: 60_000 }, async ({ s3, tenant }) => {
    await using proxy = await startProxy(s3.endpoint);
    using over = createS3Objects({ ...s3, endpoint: proxy.url, patience });
    using objects = watchedObjects(over, { log, askMs: 50 });
    expect(objects.problem()).toBeUndefined();
    await proxy.cut("refused");
    await expect(objects.head(tenant, { kind: "raw", digest: nowhere })).rejects.toMatchObject({ code: "STORE_UNAVAILABLE" });
    expect(objects.problem()).toMatch(/does not answer .*ECONNREFUSED/);
    await sleep(300);
    expect(objects.problem()).toBeDefined();
    await proxy.restore();
    await expect.poll(() => objects.problem(), { timeout: 60_000 }).toBeUndefined();
  });

  test("that is full, or may only be read, is no better for being read", async ({ nc, tenant, dir }) => {
    const small = await createJetStreamObjects(nc, { bucket: "full", maxBytes: 4 * 1024 * 1024, spoolDir: dir });
    using objects = watchedObjects(small, { log, askMs: 20 });
    const kept = await objects.put(tenant, "raw", "kept");
    await expect(objects.put(tenant, "raw", megabytes(8))).rejects.toMatchObject({ code: "STORE_FULL" });
    const full = /^the object store is full \(store "full" in NATS: .*make room/;
    expect(objects.problem()).toMatch(full);
    expect(text(await getBytes(objects, tenant, kept))).toBe("kept");
    await sleep(200);
    expect(objects.problem()).toMatch(full);
    await objects.put(tenant, "raw", megabytes(2));
    expect(objects.problem()).toBeUndefined();
  });
});
