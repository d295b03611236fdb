/** The scripts in the shells themselves: bash always, zsh and fish where they are installed. */
import { execFileSync } from "node:child_process";
import { Command, Option } from "commander";
import { existsSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { PassThrough } from "node:stream";
import { afterAll, beforeAll, expect, test } from "vitest";
import { createProgram } from "../program.ts";
import { completionScripts, type Shell } from "./shell-completion.ts";

const stream = new PassThrough().resume();
const terminal = { out: stream, err: stream, in: stream, columns: 80, signal: new AbortController().signal };
const program = createProgram({ root: "/nowhere", env: {}, pid: 1, node: "node", terminal }, () => undefined);
const shells = Object.keys(completionScripts) as Shell[];
const isHere = (shell: string): boolean => (process.env["PATH"] ?? "").split(delimiter).some((dir) => existsSync(join(dir, shell)));

let dir = "";
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "completion-"));
  for (const shell of shells) await writeFile(join(dir, shell), completionScripts[shell](program));
});
afterAll(() => rm(dir, { recursive: true, force: true }));

/** How each shell is asked, without a terminal, what it would offer behind these words. The last is the one under the cursor. */
const asked: Readonly<Record<Shell, (words: readonly string[]) => string>> = {
  bash: (words) =>
    `source ${join(dir, "bash")}; COMP_WORDS=(${words.map(quoted).join(" ")}); COMP_CWORD=${words.length - 1}; _loraline; printf '%s\\n' "\${COMPREPLY[@]}"`,
  // What zsh's completion system would show is printed instead: it works on a terminal only.
  zsh: (words) =>
    [
      "compdef() {}; _files() {}",
      "compadd() { shift; print -l -- $@ }",
      "_describe() { local list=$@[-1]; print -l -- ${${(P)list}%%:*} }",
      `source ${join(dir, "zsh")}`,
      `words=(${words.map(quoted).join(" ")}); CURRENT=${words.length}; _loraline`,
    ].join("\n"),
  fish: (words) => `source ${join(dir, "fish")}; complete -C ${quoted(words.join(" "))} | string replace -r '\\t.*' ''; true`,
};
const quoted = (text: string): string => `'${text}'`;

/** Sorted. As a shell does itself, what does not begin with the word under the cursor is left out. */
function offered(shell: Shell, ...words: string[]): string[] {
  const flags = shell === "bash" ? ["--norc", "-c"] : shell === "zsh" ? ["-f", "-c"] : ["--no-config", "-c"];
  const text = execFileSync(shell, [...flags, asked[shell](["loraline", ...words])], {
    encoding: "utf8",
    env: { ...process.env, HOME: dir },
  });
  return text
    .split("\n")
    .filter((word) => word !== "" && word.startsWith(words.at(-1) ?? ""))
    .toSorted();
}

test.each(shells.filter(isHere))("%s offers commands, options and values where they may stand", (shell) => {
  expect(offered(shell, "ru")).toEqual(["run", "runs"]);
  expect(offered(shell, "adapters", "")).toEqual(expect.arrayContaining(["add", "place"]));
  expect(offered(shell, "adapters", "add", "--pro")).toEqual(["--probe", "--promote"]);
  expect(offered(shell, "adapters", "add", "--promote", "")).toEqual(["auto", "canary", "manual"]);
  expect(offered(shell, "adapters", "add", "--promote", "c")).toEqual(["canary"]);
  expect(offered(shell, "completion", "")).toEqual(["bash", "fish", "zsh"]);
  expect(offered(shell, "runs", "--js"), "options of the program itself").toEqual(["--json"]);
  expect(offered(shell, "--url", "run", "ke"), "a value is no command").toEqual(["keys"]);
  expect(offered(shell, "keys", "ls", "--he"), "behind another name of a command").toEqual(["--help"]);
  expect(offered(shell, "up", "--canary")).toEqual([]);
});

test("bash is there", () => {
  expect(isHere("bash")).toBe(true);
});

test("texts with quotes and colons are only texts", () => {
  const tricky = new Command("tricky").description("it's: $(touch /nowhere) `x` \\");
  tricky
    .command("go")
    .description('don\'t: "stop" $(exit 1) \\')
    .addOption(new Option("--how <way>", "it's up to you").choices(["slow", "it's"]));
  for (const shell of shells) {
    const script = completionScripts[shell](tricky);
    expect(script).toContain("go");
    if (isHere(shell)) execFileSync(shell, ["-n", "-c", script]);
  }
});
