import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { nativeComputeType } from "./native-compute-type.ts";

interface Processor {
  processor: string;
  cpuinfo: string | null;
  env: Record<string, string>;
  type: string;
}
/** The trainer's test reads the same file. */
const processors = JSON.parse(readFileSync(join(import.meta.dirname, "../testdata/processors.json"), "utf8")) as Processor[];
const dir = mkdtempSync(join(tmpdir(), "loraline-cpuinfo-"));
afterAll(() => rmSync(dir, { recursive: true }));

describe("what a processor computes in", () => {
  it.each(processors)("$processor: $type", ({ processor, cpuinfo, env, type }) => {
    const file = join(dir, processor);
    if (cpuinfo !== null) writeFileSync(file, cpuinfo);
    expect(nativeComputeType(env, file)).toBe(type);
  });
});
