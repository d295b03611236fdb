/** The `loraline` program; the only file of the CLI that touches `process`. */
import { join } from "node:path";
import { CommanderError } from "commander";
import { exitCodes, failureOf } from "./failure.ts";
import { createProgram } from "./program.ts";
import { dim, red, writeJson, writeLine } from "./terminal.ts";

const { stdin, stdout, stderr, env, argv, pid, execPath } = process;
const interrupted = new AbortController();
/** Time for an orderly end, which takes a few seconds. After it the process ends at once, and its children with it; nothing is lost. */
const endWithinMs = 20_000;
let signals = 0;
const interrupt = (): void => {
  signals += 1;
  interrupted.abort();
  // A second Ctrl-C means: do not wait for an orderly end.
  if (signals > 1) process.exit(130);
  setTimeout(() => {
    writeLine(stderr, `${red("loraline:")} not ended in order after ${endWithinMs / 1000} s; ended at once. Nothing stored is lost.`);
    process.exit(130);
  }, endWithinMs).unref();
};
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, interrupt);
// A reader that wants no more, as in `loraline runs | head -1`, is no error.
stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code === "EPIPE") process.exit(0);
  throw error;
});

let exitCode: number = exitCodes.ok;
const terminal = { out: stdout, err: stderr, in: stdin, columns: stdout.columns ?? stderr.columns ?? 120, signal: interrupted.signal };
const context = { root: join(import.meta.dirname, "../../.."), env, pid, node: execPath, terminal };
const program = createProgram(context, (code) => {
  exitCode = code;
});
try {
  await program.parseAsync(argv);
} catch (error) {
  if (error instanceof CommanderError) {
    exitCode = error.exitCode === 0 ? exitCodes.ok : exitCodes.usage;
  } else if (interrupted.signal.aborted) {
    exitCode = 130;
  } else {
    const { message, code, param, exitCode: failed } = failureOf(error);
    exitCode = failed;
    if (program.opts<{ json: boolean }>().json) writeJson(stdout, { error: { code, message, param } });
    else writeLine(stderr, `${red("loraline:")} ${message} ${dim(`[${code}]`)}`);
    if (env.LORALINE_DEBUG) console.error(error);
  }
}
process.exitCode = exitCode;
