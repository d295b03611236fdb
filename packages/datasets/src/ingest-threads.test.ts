/** Reading in a thread gives what reading here gives; a thread that hangs, or takes all memory, costs its own upload only. */
import { writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { buffer } from "node:stream/consumers";
import type { BlobRef } from "@loraline/contracts";
import { digestOf } from "@loraline/objects";
import { UnavailableError } from "@loraline/runtime";
import { mkdtempDisposable } from "node:fs/promises";
import sharp from "sharp";
import { expect, it } from "vitest";
import { defaultIngestSettings, type IngestDeps, ingestDataset, type Upload } from "./ingest-dataset.ts";
import { createIngestThreads } from "./ingest-threads.ts";

/** A store in memory. */
function createStore() {
  const blobs = new Map<string, Buffer>();
  const objects: IngestDeps["objects"] = {
    async put(_tenant, kind, source): Promise<BlobRef> {
      const bytes =
        typeof source === "string" || source instanceof Uint8Array
          ? Buffer.from(source as string)
          : await buffer(source as AsyncIterable<Buffer>);
      const digest = digestOf(bytes);
      blobs.set(`${kind} ${digest}`, bytes);
      return { kind, digest, size: bytes.length };
    },
    async get(_tenant, { kind, digest }) {
      const bytes = blobs.get(`${kind} ${digest}`) as Buffer;
      return (async function* () {
        for (let at = 0; at < bytes.length; at += 10_000) yield bytes.subarray(at, at + 10_000);
      })();
    },
  };
  return { blobs, objects };
}

const picture = await sharp({ create: { width: 24, height: 16, channels: 3, background: "red" } })
  .png()
  .toBuffer();
const rows = [
  ...Array.from({ length: 2000 }, (_, index) => ({ question: `What is ${index}?`, answer: `It is ${index}, with sk-ant-api03-${index}.` })),
  ...Array.from({ length: 30 }, (_, index) => ({ question: `Empty ${index}`, answer: "" })),
  { image: "https://pictures.test/1.png", question: "What is it?", answer: "A square." },
];
const text = rows.map((row) => `${JSON.stringify(row)}\n`).join("");

async function given(content: string) {
  const { blobs, objects } = createStore();
  const blob = await objects.put("acme", "raw", content);
  const upload: Upload = { tenant: "acme", blob, filename: "rows.jsonl", parts: [], mapping: null };
  const settings = { ...defaultIngestSettings, chunkBytes: 50_000 };
  return { blobs, objects, upload, deps: { objects, settings, signal: new AbortController().signal } };
}

it("gives the same bytes as reading here, however often", async () => {
  await using threads = createIngestThreads();
  const fetchPicture = async () => picture;
  const [here, there] = [await given(text), await given(text)];
  const expected = await ingestDataset({ ...here.deps, fetchPicture }, here.upload);
  expect(expected).toMatchObject({ kind: "ingested", records: 2001, rejections: 30 });
  let room = 0;
  const read: number[] = [];
  const more = { fetchPicture, checkRoom: async () => void room++, onRead: (bytes: number) => read.push(bytes) };
  const warnings: string[] = [];
  const warn = (warning: Error): void => void warnings.push(warning.message);
  process.on("warning", warn);
  for (let time = 0; time < 12; time++) {
    expect(await threads.ingest({ ...there.deps, ...more }, there.upload)).toEqual(expected);
    expect(there.blobs).toEqual(here.blobs);
  }
  process.off("warning", warn);
  expect(warnings, "nothing is left at a thread that is used again").toEqual([]);
  expect(read.at(-1)).toBe(text.length);
});

it("tells errors as what they were here, and goes on", async () => {
  await using threads = createIngestThreads({ most: 1 });
  const { objects, upload, deps } = await given(text);
  const away = new UnavailableError("STORE_AWAY", "the store is away");
  const failing = { ...objects, put: () => Promise.reject(away) };
  await expect(threads.ingest({ ...deps, objects: failing }, upload)).rejects.toBe(away);
  const stopping = new AbortController();
  const reason = new Error("stopped");
  const stopped = threads.ingest(
    {
      ...deps,
      signal: stopping.signal,
      objects: {
        ...objects,
        async put(...args) {
          stopping.abort(reason);
          return objects.put(...args);
        },
      },
    },
    upload,
  );
  // Two at once, and one thread.
  const late = threads.ingest({ ...deps, signal: stopping.signal }, upload);
  const [first, third, second] = await Promise.allSettled([stopped, late, threads.ingest(deps, upload)]);
  expect(third, "stopped while it waited").toMatchObject({ status: "rejected", reason });
  expect(first).toMatchObject({ status: "rejected", reason });
  expect(second).toMatchObject({ status: "fulfilled", value: { kind: "ingested", records: 2001 } });
});

it.each([
  ["hangs", "for (;;);", 1, /longer than 1 s/],
  ["takes all memory", "const all = []; for (;;) all.push({ at: all.length, of: [] });", 120, /more than 32 MiB of memory/],
])("a thread that %s is ended, its upload is refused, and others are read", async (_, fault, silentSeconds, why) => {
  await using dir = await mkdtempDisposable(join(tmpdir(), "loraline-threads-"));
  const program = join(dir.path, "faulty-main.mjs");
  await writeFile(program, `import { parentPort } from "node:worker_threads"; parentPort.on("message", () => { ${fault} });`);
  await using threads = createIngestThreads({ program: pathToFileURL(program), heapMiB: 32, silentSeconds });
  const { deps, upload } = await given(text);
  const refused = { kind: "rejected", problem: { code: "FILE_TOO_COSTLY", message: expect.stringMatching(why) as string, param: "file" } };
  for (const result of await Promise.all([threads.ingest(deps, upload), threads.ingest(deps, upload), threads.ingest(deps, upload)]))
    expect(result).toMatchObject(refused);
});
