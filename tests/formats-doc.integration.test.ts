import { readdirSync, readFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { codeAreas } from "@loraline/contracts";
import { expect, it } from "vitest";
import { docPath, writeFormatsDoc } from "./formats-doc.ts";

it("docs/formats.md shows what the code does (`vitest run tests/formats-doc -u` writes it anew)", async () => {
  await expect(await writeFormatsDoc(await readFile(docPath, "utf8"))).toMatchFileSnapshot(docPath);
});

/** Codes that are about a program's state and not about a user's file. */
const notOfFiles = new Set(["OBJECT_MISSING"]);
/** Other words in capitals, such as the names of Parquet's pages, are no codes. */
const known = new Set(codeAreas.flatMap((area) => Object.keys(area.codes)));

it.each([
  ["packages/datasets", /"([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+|AMBIGUOUS)"/g],
  ["packages/tokens", /drop\(\s*"([A-Z_]+)"/g],
] as const)("docs/formats.md has a line for every code of %s", (of, pattern) => {
  const folder = join(import.meta.dirname, "..", of, "src");
  const doc = readFileSync(docPath, "utf8");
  const codes = readdirSync(folder, { recursive: true, encoding: "utf8" })
    .filter((file) => file.endsWith(".ts") && !/\.test\.ts$|-main\.ts$|-under-test\.ts$/.test(file))
    .flatMap((file) => [...readFileSync(join(folder, file), "utf8").matchAll(pattern)].map(([, code]) => code as string))
    .filter((code) => known.has(code) && !notOfFiles.has(code) && !/^(?:FETCH|HUB|IMPORT|Z)_/.test(code));
  expect(codes.length).toBeGreaterThan(3);
  expect([...new Set(codes)].filter((code) => !doc.includes(`\`${code}\``))).toEqual([]);
});
