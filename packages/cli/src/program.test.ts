import { PassThrough } from "node:stream";
import { version } from "@loraline/contracts";
import { expect, test } from "vitest";
import { runProgram } from "./program.ts";

async function run(...args: string[]) {
  const [out, err] = [new PassThrough(), new PassThrough()];
  const said = { out: "", err: "" };
  out.on("data", (chunk: Buffer) => (said.out += chunk.toString()));
  err.on("data", (chunk: Buffer) => (said.err += chunk.toString()));
  const terminal = { out, err, in: new PassThrough(), columns: 80, signal: new AbortController().signal };
  const context = { root: "/nowhere", env: {}, pid: 1, node: "node", terminal };
  const code = await runProgram(args, context);
  return { ...said, code };
}

test("--version prints the version and nothing else", async () => {
  expect((await run("--version")).out).toBe(`${version}\n`);
});

test("--help has what users need before what operators need", async () => {
  const { out } = await run("--help");
  const headings = out.split("\n").filter((text) => /^[A-Z].*:$/.test(text));
  expect(headings).toEqual([
    "Options:",
    "A server on this machine:",
    "Train and ask:",
    "Datasets:",
    "Adapters and their versions:",
    "For operators and admins:",
    "About this program:",
    "Examples:",
  ]);
  const group = (heading: string) => out.slice(out.indexOf(heading)).split("\n\n")[0];
  expect(group("Train and ask:")).toMatch(
    /run .*\n.*runs .*\n.*show .*\n.*cancel .*\n.*pause .*\n.*resume .*\n.*trace .*\n.*plot .*\n.*compare .*\n.*chat /,
  );
  expect(group("For operators and admins:")).toMatch(/keys[\s\S]*dlq[\s\S]*ensure-streams/);
});

test("a misspelt option is told, not that the required one is missing", async () => {
  const wrong = await run("run", "a.jsonl", "--bas", "x", "--name", "y");
  expect(wrong.err).toMatch(/^loraline: usage error: unknown option '--bas'\n\(Did you mean --base\?\)\n\(--help shows how\)/);
  expect(wrong.code).toBe(2);
  expect((await run("keys", "create", "--nam", "x")).err).toContain("unknown option '--nam'");
  expect((await run("run", "a.jsonl")).err).toMatch(/^loraline: usage error: required option '--name <adapter>' not specified/);
  expect((await run("run", "--help")).out).toContain("--settings <run.yaml>");
  expect((await run("adapters", "place", "x", "--spread", "0")).err).toMatch(/usage error: .*whole number from 1 to 10000/);
});
