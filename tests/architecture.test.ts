import { globSync, readFileSync } from "node:fs";
import { basename, dirname, join, posix } from "node:path";
import { describe, expect, it } from "vitest";
import { findViolations, type Manifest, mayImport } from "./architecture.ts";
import { findUnusedExports } from "./unused-exports.ts";

const root = join(import.meta.dirname, "..");
const read = (path: string) => readFileSync(join(root, path), "utf8");
const glob = (pattern: string) => globSync(pattern, { cwd: root }).map((path) => path.replaceAll("\\", "/"));

interface WithExports {
  exports?: Record<string, { "@loraline/source": string }>;
}

describe("this repository", () => {
  const paths = glob("{packages,services}/*/src/**/*.{ts,tsx}");
  const folders = glob("{packages,services}/*/package.json").map((path) => dirname(path));
  const manifests = new Map(["", ...folders].map((folder) => [folder, JSON.parse(read(join(folder, "package.json"))) as Manifest]));

  it("keeps its boundaries", () => {
    const sources = paths.map((path) => ({ path, text: read(path) }));
    expect(findViolations({ sources, manifests })).toEqual([]);
  });

  it("exports only what another file imports", () => {
    const all = [...paths, ...glob("tests/**/*.ts"), ...glob("*.ts")].map((path) => ({ path, text: read(path) }));
    const entries = folders.flatMap((folder) =>
      Object.entries((JSON.parse(read(join(folder, "package.json"))) as WithExports).exports ?? {}).map(
        ([below, targets]) =>
          [`@loraline/${posix.join(basename(folder), below)}`, posix.join(folder, targets["@loraline/source"])] as const,
      ),
    );
    expect(findUnusedExports(all, new Map(entries))).toEqual([]);
  });

  it("has every source file looked at", () => {
    expect(folders.toSorted()).toEqual(
      Object.keys(mayImport)
        .filter((folder) => folders.includes(folder))
        .toSorted(),
    );
    for (const folder of folders) expect(paths.filter((path) => path.startsWith(`${folder}/`))).not.toEqual([]);
  });

  it("has at most 16 sources in a folder, without their tests", () => {
    const sources = paths.filter((path) => !/\.test\.ts$|-under-test\.ts$/.test(path)).map((path) => dirname(path));
    const crowded = Map.groupBy(sources, (folder) => folder)
      .entries()
      .filter(([, of]) => of.length > 16)
      .map(([folder, of]) => `${folder}: ${of.length}`);
    expect([...crowded]).toEqual([]);
  });

  it("declares nothing that it does not import", () => {
    const unused = folders.flatMap((folder) => {
      const text = paths
        .filter((path) => path.startsWith(`${folder}/`))
        .map(read)
        .join("\n");
      const { dependencies = {}, devDependencies = {} } = manifests.get(folder) ?? {};
      return Object.keys({ ...dependencies, ...devDependencies })
        .filter((name) => !name.startsWith("@types/") && !new RegExp(`["']${name}(?:/[^"']*)?["']`).test(text))
        .map((name) => `${folder}: ${name}`);
    });
    expect(unused).toEqual([]);
  });

  it("declares no dependency between packages that the directions forbid", () => {
    for (const folder of folders) {
      const ours = Object.keys(manifests.get(folder)?.dependencies ?? {}).filter((name) => name.startsWith("@loraline/"));
      expect(mayImport[folder], folder).toEqual(expect.arrayContaining(ours.map((name) => name.replace("@loraline/", ""))));
    }
  });
});

describe("the search for unused exports", () => {
  const entries = new Map([["@loraline/bus", "packages/bus/src/index.ts"]]);
  const find = (files: Record<string, string>) =>
    findUnusedExports(
      Object.entries(files).map(([path, text]) => ({ path, text })),
      entries,
    );

  it("finds an export that no other file imports", () => {
    expect(
      find({
        "packages/bus/src/kv.ts": "export const used = 1;\nexport interface Unused {}\nexport const own = used;",
        "packages/bus/src/bus.ts": 'import { used } from "./kv.ts";\nconsole.log(used);',
        "packages/bus/src/bus.test.ts": 'import { own } from "./kv.ts";\nconsole.log(own);',
      }),
    ).toEqual([
      "packages/bus/src/kv.ts: no other file imports Unused; do not export it",
      "packages/bus/src/kv.ts: only tests use own; delete it, or move it to the tests",
    ]);
  });

  it("follows a name through the package's index, and finds what nobody takes from there", () => {
    expect(
      find({
        "packages/bus/src/index.ts": 'export { first, second } from "./names.ts";\nexport * from "./more.ts";',
        "packages/bus/src/names.ts": "export const first = 1;\nexport const second = 2;",
        "packages/bus/src/more.ts": "export type Third = 3;\nexport type Fourth = 4;",
        "services/train/src/main.ts":
          'import { first, type Third } from "@loraline/bus";\nconst third: Third = 3;\nconsole.log(first, third);',
      }),
    ).toEqual([
      "packages/bus/src/index.ts: no other file imports second; do not export it",
      "packages/bus/src/names.ts: no other file imports second; do not export it",
      "packages/bus/src/more.ts: no other file imports Fourth; do not export it",
    ]);
  });

  it("takes a test for a user of what its own file uses too, and an import of everything for a use of each name", () => {
    expect(
      find({
        "packages/bus/src/kv.ts": "export const limitMs = 5;\nexport const wait = () => limitMs;",
        "packages/bus/src/all.ts": "export const one = 1;",
        "packages/bus/src/main.ts": 'import { wait } from "./kv.ts";\nconst { one } = await import("./all.ts");\nconsole.log(wait(), one);',
        "packages/bus/src/kv.test.ts": 'import { limitMs } from "./kv.ts";\nconsole.log(limitMs);',
      }),
    ).toEqual([]);
  });
});

describe("the checker", () => {
  const everything = ["zod", "@loraline/contracts", "@loraline/runtime", "@loraline/bus", "@loraline/serve", "@loraline/local", "pino"];
  const manifest: Manifest = { dependencies: Object.fromEntries(everything.map((name) => [name, "*"])) };
  const manifests = new Map(Object.keys(mayImport).map((folder) => [folder, manifest]));
  const check = (files: Record<string, string>) =>
    findViolations({ sources: Object.entries(files).map(([path, text]) => ({ path, text })), manifests });

  it.each<[string, Record<string, string>, RegExp]>([
    ["a service imports another", { "services/train/src/a.ts": `import { x } from "@loraline/serve";` }, /may not import @loraline\/serve/],
    ["also as a type", { "services/train/src/a.ts": `import type { X } from "@loraline/serve";` }, /may not import @loraline\/serve/],
    ["also by export", { "services/train/src/a.ts": `export * from "@loraline/serve";` }, /may not import @loraline\/serve/],
    ["also on demand", { "services/train/src/a.ts": `const x = await import("@loraline/serve");` }, /may not import @loraline\/serve/],
    ["also deep", { "services/train/src/a.ts": `import "@loraline/serve/src/x.ts";` }, /may not import @loraline\/serve/],
    ["also in a test", { "services/train/src/a.test.ts": `import "@loraline/serve";` }, /may not import @loraline\/serve/],
    ["contracts import another library", { "packages/contracts/src/a.ts": `import { pino } from "pino";` }, /only zod/],
    ["contracts import the platform", { "packages/contracts/src/a.ts": `import { readFile } from "node:fs/promises";` }, /only zod/],
    ["runtime imports ours", { "packages/runtime/src/a.ts": `import "@loraline/contracts";` }, /may not import @loraline\/contracts/],
    ["cli imports a service", { "packages/cli/src/a.ts": `import "@loraline/serve";` }, /may not import @loraline\/serve/],
    ["testkit in a product file", { "services/train/src/a.ts": `import "@loraline/testkit";` }, /may not import @loraline\/testkit/],
    [
      "a relative import across packages",
      { "services/train/src/a.ts": `import "../../serve/src/b.ts";` },
      /reaches out of services\/train/,
    ],
    ["an undeclared dependency", { "services/train/src/a.ts": `import _ from "lodash";` }, /"lodash" is not declared/],
    ["a package nobody entered", { "packages/extra/src/a.ts": "export {};" }, /packages\/extra is unknown/],
    [
      "process outside of main.ts",
      { "packages/bus/src/a.ts": "export const f = () => process.env.HOME;" },
      /a\.ts:1: only main\.ts may touch/,
    ],
    ["process by import", { "packages/bus/src/a.ts": `import { env } from "node:process";` }, /only main\.ts may import/],
    [
      "a decider reads a file",
      { "services/train/src/decide-run.ts": `import { readFileSync } from "node:fs";` },
      /readFileSync from "node:fs"/,
    ],
    ["a decider reads the clock", { "services/train/src/decide-run.ts": "export const now = () => Date.now();" }, /Date\.now/],
    ["a fold makes a date of now", { "packages/contracts/src/fold-run.ts": "export const now = () => new Date();" }, /new Date\(\)/],
    ["a manifest reads the environment", { "services/train/src/job-manifest.ts": "export const e = process.env;" }, /process \(/],
    ["pack rolls dice", { "services/tokenize/src/pack.ts": "export const r = Math.random();" }, /Math\.random/],
    ["detect logs", { "services/ingest/src/detect.ts": `import { createLogger } from "@loraline/runtime";` }, /createLogger/],
    [
      "a decider is impure through another file",
      {
        "services/serve/src/decide-x.ts": `import { y } from "./y.ts";`,
        "services/serve/src/y.ts": `export const y = await fetch("http://x");`,
      },
      /y\.ts:1: fetch \(decide-x\.ts → y\.ts must be pure\)/,
    ],
    [
      "a KV key put together by hand",
      { "services/train/src/a.ts": 'import { x } from "@loraline/bus"; export const key = (a: string, b: string) => `${a}.${b}`;' },
      /a\.ts:1: a KV key by hand/,
    ],
    [
      "a filter of KV keys by hand",
      { "services/train/src/a.ts": 'import { x } from "@loraline/bus"; export const all = (a: string) => `${a}.*`;' },
      /a\.ts:1: a KV key by hand/,
    ],
    [
      "a KV key taken apart by hand",
      {
        "services/train/src/a.ts":
          'import { x } from "@loraline/bus"; export const f = (k: string) => { const [a, b] = k.split("."); return a + b; };',
      },
      /a\.ts:1: a KV key by hand/,
    ],
    [
      "a circle of imports, also of types",
      {
        "services/train/src/a.ts": 'import { b } from "./b.ts"; export type A = string; export const a = b;',
        "services/train/src/b.ts": 'import type { A } from "./a.ts"; export const b: A = "b";',
      },
      /circle: services\/train\/src\/a\.ts → services\/train\/src\/b\.ts → services\/train\/src\/a\.ts/,
    ],
  ])("finds: %s", (_, files, expected) => {
    expect(check(files).join("\n")).toMatch(expected);
  });

  it.each<[string, Record<string, string>]>([
    ["a service imports packages", { "services/train/src/a.ts": `import { x } from "@loraline/bus"; import { z } from "zod";` }],
    ["main.ts touches process", { "services/train/src/main.ts": "process.exitCode = 1;" }],
    ["process as a name of one's own", { "packages/bus/src/a.ts": "export const o = { process: 1 }; export const n = o.process;" }],
    ["process in a comment or text", { "packages/bus/src/a.ts": "// process.env\nexport const s = `process.env`;" }],
    [
      "a pure file with types of impure ones",
      {
        "services/serve/src/decide-x.ts": `import type { Y } from "./y.ts"; import { type Z, PermanentError } from "@loraline/runtime"; export const d = (now: Date): Y => new Date(now);`,
        "services/serve/src/y.ts": "export type Y = Date; export const y = Date.now();",
      },
    ],
  ])("allows: %s", (_, files) => {
    expect(check(files)).toEqual([]);
  });
});
