import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { readTensors, scanTensors } from "./safetensors.ts";

let dir = "";
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "safetensors-"));
});
afterAll(() => rm(dir, { recursive: true, force: true }));

async function write(header: unknown, data: Uint8Array, claim?: number): Promise<string> {
  const text = Buffer.from(typeof header === "string" ? header : JSON.stringify(header));
  const prefix = Buffer.alloc(8);
  prefix.writeBigUInt64LE(BigInt(claim ?? text.length));
  const path = join(dir, `${Math.random()}.safetensors`);
  await writeFile(path, Buffer.concat([prefix, text, data]));
  return path;
}
const words = (...values: number[]): Uint8Array => new Uint8Array(Uint16Array.from(values).buffer);

describe("scanTensors", () => {
  it("finds NaN, infinity and zeros in each type", async () => {
    const f32 = new Uint8Array(Float32Array.from([1, Number.NaN, Number.POSITIVE_INFINITY]).buffer);
    const data = Buffer.concat([words(0x3f80, 0x7f80, 0xffc0), words(0x8000, 0), words(0x7c01), f32]);
    const path = await write(
      {
        __metadata__: { format: "pt" },
        bf: { dtype: "BF16", shape: [3], data_offsets: [0, 6] },
        zero: { dtype: "BF16", shape: [2], data_offsets: [6, 10] },
        half: { dtype: "F16", shape: [1], data_offsets: [10, 12] },
        full: { dtype: "F32", shape: [3], data_offsets: [12, 24] },
      },
      data,
    );
    const scanned = Object.fromEntries((await scanTensors(path)).map(({ name, notFinite, allZero }) => [name, [notFinite, allZero]]));
    expect(scanned).toEqual({ bf: [2, false], zero: [0, true], half: [1, false], full: [2, false] });
    expect(await readTensors(path)).toHaveLength(4);
  });

  it("tells tensors apart in a file that is read tensor by tensor", async () => {
    const bad = new Uint16Array(40_000).fill(0x7f80);
    const path = await write(
      {
        bad: { dtype: "BF16", shape: [40_000], data_offsets: [0, 80_000] },
        zero: { dtype: "BF16", shape: [2], data_offsets: [80_000, 80_004] },
        good: { dtype: "BF16", shape: [1], data_offsets: [80_004, 80_006] },
      },
      Buffer.concat([new Uint8Array(bad.buffer), words(0x8000, 0), words(0x3f80)]),
    );
    const scanned = (await scanTensors(path)).map(({ name, notFinite, allZero }) => [name, notFinite, allZero]);
    expect(scanned).toEqual([
      ["bad", 40_000, false],
      ["zero", 0, true],
      ["good", 0, false],
    ]);
  });

  it.each([
    ["is cut off in the data", { x: { dtype: "BF16", shape: [4], data_offsets: [0, 8] } }, words(1), undefined],
    ["claims a longer header than there is", {}, words(), 5000],
    ["claims an enormous header", {}, words(), 2 ** 40],
    ["has no JSON header", "nonsense", words(), undefined],
  ])("refuses a file that %s", async (_what, header, data, claim) => {
    await expect(scanTensors(await write(header, data, claim))).rejects.toMatchObject({ code: "ADAPTER_UNREADABLE" });
  });
});
