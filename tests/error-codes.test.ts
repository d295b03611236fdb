/** The table of codes (packages/contracts/src/codes) and what the sources raise are the same. */
import { globSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { codeAreas, explainCode } from "@loraline/contracts";
import { describe, expect, it } from "vitest";
import { remedies } from "../packages/console/src/texts/remedies-zh.ts";
import { codesRaisedIn, codesRaisedInPython } from "./error-codes.ts";

const root = join(import.meta.dirname, "..");
const sources = (pattern: string) =>
  globSync(pattern, { cwd: root })
    .map((path) => path.replaceAll("\\", "/"))
    .filter((path) => !/\.test\.ts$|-under-test|testkit|scripted|simulated|\/test_|\/conftest|contracts\/src\/codes\//.test(path))
    .map((path) => ({ path, text: readFileSync(join(root, path), "utf8") }));

const typescript = sources("{packages,services}/*/src/**/*.ts");
const python = sources("services/train/trainer/*.py");
const codes = codeAreas.flatMap((area) => Object.keys(area.codes));

/** Their codes end programs and commands, and reach no page of the console. */
const onNoPage = [
  "The command line",
  "Programs and their environment",
  "Settings of an engine",
  "NATS and the object store",
  "Kubernetes resources",
];

describe("the table of codes", () => {
  it("has each that a page can show in Chinese, too, in packages/console/src/texts/remedies-zh.ts", () => {
    const shown = codeAreas.filter(({ title }) => !onNoPage.includes(title)).flatMap((area) => Object.keys(area.codes));
    expect(shown.length).toBeLessThan(codes.length);
    expect(Object.keys(remedies).toSorted()).toEqual(shown.toSorted());
  });

  it("has every code that is raised", () => {
    const raised = [...typescript.flatMap(codesRaisedIn), ...python.flatMap(codesRaisedInPython)];
    expect(raised.length).toBeGreaterThan(300);
    const unknown = raised.filter(({ code }) => explainCode(code) === undefined);
    expect(unknown.map(({ code, at }) => `${at}: ${code} is not in packages/contracts/src/codes`)).toEqual([]);
  });

  it("has none that nobody raises", () => {
    const text = [...typescript, ...python].map((file) => file.text).join("\n");
    const written = new Set([...text.matchAll(/"(\w+)"/g)].map((match) => match[1]));
    expect(codes.filter((code) => !written.has(code))).toEqual([]);
  });

  it("has each once, and says of each what it means and what to do", () => {
    expect(codes).toEqual([...new Set(codes)]);
    for (const code of codes) {
      const { meaning, remedy } = explainCode(code) ?? { meaning: "", remedy: "" };
      expect(meaning, code).toMatch(/^[\w`][^]+\.$/);
      expect(remedy, code).toMatch(/^[\w`][^]+\.$/);
    }
  });
});

describe("the reader of sources", () => {
  const raises = (text: string, path = "services/train/src/a.ts") => codesRaisedIn({ path, text }).map(({ code }) => code);

  it.each([
    ["an error", `throw new PermanentError("GONE", "it is gone");`, ["GONE"]],
    ["one of two", `throw new PermanentError(late ? "TOO_LATE" : "TOO_EARLY", "no");`, ["TOO_LATE", "TOO_EARLY"]],
    ["a problem", `export const p = { code: "GONE", message: "it is gone" };`, ["GONE"]],
    ["a helper", `refuse("ROW_BAD", "it is bad");`, ["ROW_BAD"]],
    ["a pair", `export const f = () => ["QUOTA", "it is used up"];`, ["QUOTA"]],
  ])("finds a code in %s", (_, text, expected) => {
    expect(raises(text)).toEqual(expected);
  });

  it("finds the gateway's codes, and no environment variables", () => {
    expect(raises(`throw badRequest("bad_day", "no day");`, "services/gateway/src/a.ts")).toEqual(["bad_day"]);
    expect(raises(`env("LORALINE_PORT"); needed("TRAIN_JOBS_DIR");`)).toEqual([]);
  });

  it("finds a code in Python", () => {
    const text = 'raise TrainerError("GONE", "it is gone")\njob.emit({"type": "warning", "code": "ODD"})';
    expect(codesRaisedInPython({ path: "a.py", text })).toEqual([
      { code: "GONE", at: "a.py:1" },
      { code: "ODD", at: "a.py:2" },
    ]);
  });
});
