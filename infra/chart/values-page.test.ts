import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { valuesPage } from "./values-page.ts";

const chart = join(import.meta.dirname, "../../helm/loraline");
const read = (path: string): string => readFileSync(join(chart, path), "utf8");

test("values.md is what values.yaml and the schema say; `make generate` writes it", () => {
  expect(read("values.md")).toBe(valuesPage(read("values.yaml")));
});

test("every value has a meaning, and the schema knows it", () => {
  const rows = read("values.md")
    .split("\n")
    .filter((line) => line.startsWith("| `"));
  expect(rows.length).toBeGreaterThan(250);
  expect(rows.filter((row) => /\|\s*\|$/.test(row))).toEqual([]);
  // A key that the schema does not have would be said to be of any kind.
  expect(rows.filter((row) => row.includes("| any |"))).toEqual([]);
});

test("a comment is about its key, an example is shown as one, and parts say what all pods have as the gateway does", () => {
  const page = valuesPage(`# About the file.

# -- Which lines are logged.
logLevel: info

# Where users come in.
gateway:
  # -- More variables.
  env: []
# Turns rows into records.
ingest:
  env: []
objects:
  s3:
    # -- Name of the bucket.
    # bucket: "blobs"
    bucket: ""
`);
  expect(page).not.toContain("About the file");
  expect(page).toContain("| `logLevel` | `trace`, `debug`, `info`, `warn`, `error` | `info` | Which lines are logged. |");
  expect(page).toContain("## ingest\n\nTurns rows into records.");
  expect(page).toContain("| `ingest.env` | list of: `EnvVar` of Kubernetes | `[]` | More variables. |");
  expect(page).toContain('| `objects.s3.bucket` | text | `""` | Name of the bucket. Example: `bucket: "blobs"` |');
});
