import { PassThrough } from "node:stream";
import { runProgram } from "@loraline/cli";
import { root } from "./line-process.ts";

/**
 * Runs the CLI in this process, which saves the seconds that a new Node process takes to load it.
 * @param at - the server; undefined: none is named.
 */
export async function loraline(at: { url: string; apiKey: string } | undefined, args: readonly string[], input = "") {
  const [out, err, stdin] = [new PassThrough(), new PassThrough(), new PassThrough()];
  const said = { out: "", err: "" };
  out.on("data", (chunk: Buffer) => (said.out += chunk.toString()));
  err.on("data", (chunk: Buffer) => (said.err += chunk.toString()));
  stdin.end(input);
  const terminal = { out, err, in: stdin, columns: 120, signal: new AbortController().signal };
  const context = { root, env: {}, pid: process.pid, node: process.execPath, terminal };
  const where = at === undefined ? [] : ["--url", at.url, "--key", at.apiKey];
  const code = await runProgram([...where, ...args], context);
  return { ...said, code };
}
