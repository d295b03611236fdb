/** The same rows in every container give the same records. Formats that pyarrow knows are written by pyarrow. */
import { spawnSync } from "node:child_process";
import { createReadStream, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { createBus, ensureStreams } from "@loraline/bus";
import { datasetIngested, datasetReceived, datasetReport } from "@loraline/contracts";
import { type Batch, type FileSource, openContainer, readRecords } from "@loraline/datasets";
import { createJetStreamObjects, getJson } from "@loraline/objects";
import { createLog, createTelemetry } from "@loraline/runtime";
import { test as withServers } from "@loraline/testkit";
import { ulid } from "ulid";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { createIngestService } from "./service.ts";

const root = join(import.meta.dirname, "../../..");
const dir = mkdtempSync(join(tmpdir(), "loraline-containers-"));
const options = { maxRowBytes: 100_000 };

/** Rows of two formats, with some empty answers, and texts with delimiters and line ends. */
const rows = Array.from({ length: 230 }, (_, n) =>
  n % 3 === 0
    ? {
        instruction: null,
        output: null,
        messages: [
          { role: "user", content: `问题 ${n} 🙂` },
          { role: "assistant", content: `a,"${n}"\n;\t|` },
        ],
      }
    : { instruction: `q,${n} "quoted"\r\nline`, output: n % 20 === 1 ? "" : `答案 ${n}`, messages: null },
);
const jsonl = rows.map((row) => `${JSON.stringify(row)}\n`).join("");

function delimited(delimiter: string, lineEnd: string): string {
  const cell = (text: string): string => `"${text.replaceAll('"', '""')}"`;
  const lines = rows.map(({ instruction, output, messages }) =>
    [cell(instruction ?? ""), cell(output ?? ""), messages === null ? "" : cell(JSON.stringify(messages))].join(delimiter),
  );
  return [["instruction", "output", "messages"].join(delimiter), ...lines].map((line) => line + lineEnd).join("");
}

const utf16 = (text: string, order: "le" | "be", mark: boolean): Buffer => {
  const bytes = Buffer.from(`${mark ? "\uFEFF" : ""}${text}`, "utf16le");
  return order === "le" ? bytes : bytes.swap16();
};

const texts: Record<string, Buffer> = {
  "rows.jsonl": Buffer.from(jsonl),
  "marked.jsonl": Buffer.from(`\uFEFF${jsonl}`),
  "mac.jsonl": Buffer.from(jsonl.replaceAll("\n", "\r")),
  "array.json": Buffer.from(JSON.stringify(rows, null, 1)),
  "rows.csv": Buffer.from(delimited(",", "\n")),
  "excel.csv": Buffer.from(`\uFEFF${delimited(";", "\r\n")}`),
  "rows.tsv": Buffer.from(delimited("\t", "\n")),
  "le-marked.jsonl": utf16(jsonl, "le", true),
  "be-marked.csv": utf16(delimited(",", "\n"), "be", true),
  "le.jsonl": utf16(jsonl, "le", false),
  "be.jsonl": utf16(jsonl, "be", false),
};

function python(script: string, input = ""): void {
  const { status, stderr } = spawnSync(join(root, ".venv/bin/python"), [join(root, "packages/datasets/testdata", script), dir], { input });
  if (status !== 0) throw new Error(stderr.toString());
}

async function read(source: FileSource): Promise<Batch & { container: string }> {
  const reading = await readRecords(source, options);
  const all: Batch & { container: string } = { records: [], rejections: [], container: reading?.container ?? "none" };
  for await (const { records, rejections } of reading?.batches ?? []) {
    all.records.push(...records);
    all.rejections.push(...rejections);
  }
  return all;
}
const idsOf = ({ records }: Batch): string[] => records.map(({ id }) => id);

let wanted: Batch;

beforeAll(async () => {
  for (const [name, bytes] of Object.entries(texts)) writeFileSync(join(dir, name), bytes);
  python("write_containers.py", jsonl);
  python("write_types.py");
  wanted = await read({ file: join(dir, "rows.jsonl") });
  // The expected result is checked by hand: every twentieth instruction has no answer.
  expect(wanted.rejections.map(({ code }) => code)).toEqual(Array.from({ length: 8 }, () => "EMPTY_ANSWER"));
  expect(wanted.records).toHaveLength(222);
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const names = [
  ...Object.keys(texts),
  ...["none", "snappy", "gzip", "brotli", "zstd", "lz4", "v2", "one-group"].map((name) => `${name}.parquet`),
  "uncompressed.feather",
  "lz4.feather",
  "zstd.feather",
  "stream.arrow",
  "dictionary.arrow",
  "large.arrow",
  "views.arrow",
];

describe.each(names)("%s", (name) => {
  const bytes = (): Buffer => readFileSync(join(dir, name));

  test("gives the records of the JSON Lines file, from a path and from pieces of any size", async () => {
    const fromPath = await read({ file: join(dir, name) });
    expect(idsOf(fromPath)).toEqual(idsOf(wanted));
    expect(fromPath.rejections.map(({ code }) => code)).toEqual(wanted.rejections.map(({ code }) => code));
    const inPieces = await read(createReadStream(join(dir, name), { highWaterMark: 777 }));
    expect(inPieces).toEqual(fromPath);
  });

  test("says how much of it is read, to its end, from a path and from bytes that are copied first", async () => {
    const size = bytes().length;
    const read: number[] = [];
    const fromPath = await readRecords({ file: join(dir, name), onRead: (more) => void read.push(more) }, options);
    for await (const _batch of fromPath?.batches ?? []);
    expect(read.reduce((sum, more) => sum + more, 0)).toBe(size);
    const shares: number[] = [];
    const copied = await readRecords(once(bytes()), { ...options, onShare: (share) => void shares.push(share) });
    for await (const _batch of copied?.batches ?? []);
    // Of other files the bytes say it.
    expect([shares[0], shares.at(-1)]).toEqual(name.endsWith(".parquet") ? [0, 1] : [undefined, undefined]);
    expect(shares).toEqual(shares.toSorted((a, b) => a - b));
  });

  test("gives them packed with gzip and zstd too, in several members and frames", async () => {
    const whole = bytes();
    const half = whole.length >> 1;
    for (const pack of [gzipSync, zstdCompressSync]) {
      const packed = Buffer.concat([pack(whole.subarray(0, half)), pack(whole.subarray(half))]);
      writeFileSync(join(dir, "packed"), packed);
      expect(idsOf(await read({ file: join(dir, "packed") }))).toEqual(idsOf(wanted));
    }
  });

  test("cut off anywhere or with any byte changed, it is read, or refused by name", async () => {
    const whole = bytes();
    const refusals: string[] = [];
    for (let n = 0; n < 24; n++) {
      const at = (n * 7919 + 13) % whole.length;
      const damaged = n % 2 === 0 ? whole.subarray(0, at) : Buffer.from(whole);
      if (n % 2 === 1) damaged[at] = (damaged[at] as number) ^ (1 << (n % 8));
      const refusal = await read(once(damaged)).then(
        () => undefined,
        (error: { code?: string; message: string }) => `${error.code}: ${error.message}`,
      );
      if (refusal !== undefined) refusals.push(refusal);
    }
    const named = /^(FILE_TRUNCATED|FILE_CORRUPT|FILE_TOO_LARGE|CONTAINER_UNSUPPORTED|CSV_HEADER|CSV_QUOTES): .{10,1000}$/s;
    expect(refusals.filter((refusal) => !named.test(refusal))).toEqual([]);
    // Text formats cannot notice a cut; all other formats must.
    expect(refusals.length).toBeGreaterThanOrEqual(/\.(parquet|feather|arrow)$/.test(name) ? 11 : 0);
  });
});

async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}

describe("lines", () => {
  test.each([
    ["rows.jsonl", 2, "line 2"],
    ["array.json", 2, /^element 2 \(line \d+\)/],
    ["rows.csv", 3, "line 3"],
    ["excel.csv", 3, "line 3"],
    ["none.parquet", 2, "row 2"],
    ["stream.arrow", 2, "row 2"],
  ])("of %s are those a person would look at", async (name, line, place) => {
    const { rejections } = await read({ file: join(dir, name) });
    expect(rejections[0]?.line).toBe(line);
    expect(rejections[0]?.message).toMatch(place);
    // In CSV after the header and 41 rows, of which 27 take two lines: there is a line end in a cell.
    expect(rejections[1]?.line).toBe(name.endsWith(".csv") ? 1 + 14 + 2 * 27 + 1 : 42);
  });
});

describe("more values than bytes", () => {
  beforeAll(() => python("write_bombs.py"));

  test("pages of many columns side by side are refused before memory is taken for them", async () => {
    await expect(read({ file: join(dir, "wide.parquet") })).rejects.toMatchObject({
      code: "FILE_TOO_LARGE",
      message: expect.stringMatching(/side by side hold more than 16000000 values\. Write smaller pages/) as string,
    });
  });

  test.each(["same.parquet", "same.arrow"])("rows of %s that refer to one large value come a few at a time", async (name) => {
    const opened = await openContainer({ file: join(dir, name) }, { maxRowBytes: 1_000_000 });
    const sizes: number[] = [];
    for await (const batch of opened?.batches ?? []) sizes.push(batch.length);
    expect(sizes.reduce((sum, size) => sum + size, 0)).toBe(400);
    expect(Math.max(...sizes)).toBeLessThanOrEqual(3);
    // Their size as text is limited as for packed files.
    const small = { maxUnpackedBytes: 50_000_000, maxRatio: 200, ratioFromBytes: 1_000_000 };
    const limited = await openContainer({ file: join(dir, name) }, { maxRowBytes: 1_000_000, unpackLimits: small });
    await expect(Array.fromAsync(limited?.batches ?? [])).rejects.toMatchObject({ code: "FILE_TOO_LARGE" });
  });
});

describe("more values in one row than it may have", () => {
  beforeAll(() => python("write_bombs.py"));

  test.each(["nulls.arrow", "fixed-nulls.arrow"])("cost the row of %s, and no memory", async (name) => {
    const opened = await openContainer({ file: join(dir, name) }, { maxRowBytes: 1_000_000 });
    const [row] = (await Array.fromAsync(opened?.batches ?? [])).flat();
    expect(row).toMatchObject({ line: 1, refusal: { code: "ROW_TOO_LARGE" } });
  });

  test("are not read on through one page after the other", async () => {
    await expect(read({ file: join(dir, "endless.parquet") })).rejects.toMatchObject({
      code: "FILE_TOO_LARGE",
      message: expect.stringMatching(/^row 1 has more than 8000000 values/) as string,
    });
  });
});

describe("types", () => {
  test.each(["types.parquet", "types.arrow"])("of %s keep every digit", async (name) => {
    const opened = await openContainer({ file: join(dir, name) }, options);
    const found: { value: unknown; exact: string }[] = [];
    for await (const batch of opened?.batches ?? []) {
      for (const row of batch) if ("value" in row) found.push({ value: row.value, exact: JSON.stringify(row.exact()) });
    }
    const [first, second, third] = found;
    expect(first?.exact).toBe(
      '{"int64":4611686018427387905,"uint64":18446744073709551615,"decimal":12345678901234567890.10,"micros":"2024-02-29T12:30:01.00025Z",' +
        '"day":"2024-02-29","double":0.5,"flag":true,"lists":[[1,2],[],null],"struct":{"a":{"b":1152921504606846976},"c":null},"map":{"k":1},' +
        '"label":"yes","image":"data:image/jpeg;base64,/9j/","__proto__":"p"}',
    );
    expect(second?.exact).toBe(
      '{"int64":-1,"uint64":0,"decimal":-0.05,"micros":"1960-01-01T00:00:00Z","day":"1960-01-01","double":null,"flag":false,"lists":[],' +
        '"struct":{"a":null,"c":"x"},"map":{},"label":"no","image":"plain","__proto__":"q"}',
    );
    expect(Object.values(third?.value as object)).toEqual(Array.from({ length: 13 }, () => null));
    expect(second?.value).toMatchObject({ int64: -1, decimal: -0.05 });
  });

  test.each(["broken.parquet", "broken.arrow"])("text of %s that is no UTF-8 costs its row", async (name) => {
    const { records, rejections } = await read({ file: join(dir, name) });
    expect(records.map(({ meta }) => meta.line)).toEqual([1]);
    expect(rejections).toMatchObject([{ line: 2, code: "NOT_UTF8", message: expect.stringMatching(/^row 2 /) as string }]);
  });

  test("that are not those of a format are named", async () => {
    const { records, rejections } = await read({ file: join(dir, "wrong-types.parquet") });
    expect([records.length, rejections.length]).toEqual([0, 2]);
    expect(rejections[0]).toMatchObject({
      line: 1,
      code: "FORMAT_UNKNOWN",
      message: expect.stringMatching(/`instruction` is a number/) as string,
    });
  });

  test("without rows give none", async () => {
    expect(await read({ file: join(dir, "empty.parquet") })).toMatchObject({ records: [], rejections: [] });
  });
});

withServers("the ingest service reads each of them from the object store", async ({ nc, tenant }) => {
  const log = createLog({ service: "ingest", level: "silent" });
  const telemetry = createTelemetry({ service: "ingest" });
  await ensureStreams(nc);
  const bus = createBus({ nc, log, telemetry, source: "test" });
  const objects = await createJetStreamObjects(nc);
  await using service = await createIngestService({ bus, objects, telemetry });
  expect(service).toBeDefined();
  const seen: Record<string, unknown> = {};
  const put = async (name: string): Promise<string> => {
    const id = ulid();
    const blob = await objects.put(tenant, "raw", { file: join(dir, name) });
    await bus.publish(datasetReceived, { tenant, id }, { blob, filename: name });
    return id;
  };
  writeFileSync(join(dir, "rows.csv.gz"), gzipSync(texts["rows.csv"] as Buffer));
  writeFileSync(join(dir, "snappy.parquet.zst"), zstdCompressSync(readFileSync(join(dir, "snappy.parquet"))));
  const uploads = await Promise.all([...names, "rows.csv.gz", "snappy.parquet.zst"].map(async (name) => ({ name, id: await put(name) })));
  for (const { name, id } of uploads) {
    const event = await vi.waitFor(
      async () => (await bus.last(datasetIngested, { tenant, id })) ?? (await Promise.reject(new Error(`${name}: not yet`))),
      30_000,
    );
    const { rows: counted, records, rejections } = await getJson(objects, tenant, event.data.report, datasetReport);
    seen[name] = [counted, records, rejections];
  }
  expect(seen).toEqual(Object.fromEntries(uploads.map(({ name }) => [name, [230, 222, 8]])));
});
