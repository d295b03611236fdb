/** The `loraline` program; the only file of the CLI that touches `process`. */
import { join } from "node:path";
import { runProgram } from "./program.ts";
import { red, writeLine } from "./terminal.ts";

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

/** What somebody set, such as for a pager, counts more than what the terminal says. */
const asked = Number(env.COLUMNS) > 0 ? Number(env.COLUMNS) : undefined;
// A terminal that nobody told its size says 0.
const width = asked ?? (stdout.isTTY ? stdout.columns || 80 : undefined);
const columns = width ?? (stderr.columns || 120);
const terminal = { out: stdout, err: stderr, in: stdin, columns, width, signal: interrupted.signal };
/** The checkout; of the npm package, which has none, the folder that it is called in. */
const root = env["LORALINE_ROOT"] ?? join(import.meta.dirname, "../../..");
const context = { root, env, pid, node: execPath, terminal };
process.exitCode = await runProgram(argv.slice(2), context);
