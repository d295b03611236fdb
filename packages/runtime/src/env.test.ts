import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { z } from "zod";
import { loadEnv } from "./env.ts";

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "loraline-env-"));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));
const schema = z.object({ NATS_PASS: z.string().min(3).optional(), PORT: z.coerce.number().default(1) });

it("takes a variable from the file that NAME_FILE names, unless it is set itself; no others", () => {
  const file = join(dir, "password");
  writeFileSync(file, "s3cret\n");
  expect(loadEnv(schema, { NATS_PASS_FILE: file, OTHER_FILE: file })).toEqual({ NATS_PASS: "s3cret", PORT: 1 });
  expect(loadEnv(schema, { NATS_PASS_FILE: file, NATS_PASS: "own" })).toEqual({ NATS_PASS: "own", PORT: 1 });
  expect(loadEnv(schema, { NATS_PASS_FILE: "", NATS_PASS: "" })).toEqual({ PORT: 1 });
});

it("names every variable that is wrong, and every file that cannot be read", () => {
  const wrong = { NATS_PASS_FILE: join(dir, "none"), PORT: "many" };
  expect(() => loadEnv(schema, wrong)).toThrow(/NATS_PASS_FILE: .*none cannot be read \(ENOENT\)[^]*PORT: /);
  writeFileSync(join(dir, "short"), "x");
  expect(() => loadEnv(schema, { NATS_PASS_FILE: join(dir, "short") })).toThrow(/NATS_PASS: /);
});
