/** Keeps the logs of the server on this machine small: it may run for months, and an engine writes for each request that goes wrong. */
import { copyFile, readdir, stat, truncate } from "node:fs/promises";
import { join } from "node:path";
import type { Log } from "@loraline/runtime";

const mostBytes = 64 * 1024 * 1024;
const everyMs = 60_000;

/**
 * Moves what is in each `*.log` above the size to `*.log.1`, in place of what was there. Processes go on writing to the same file, because
 * they have it open for appending; what they write between the copy and the cut is lost.
 * @returns names of the files that were cut.
 */
export async function rotateLogs(dir: string, most = mostBytes): Promise<string[]> {
  const cut: string[] = [];
  for (const name of await readdir(dir)) {
    if (!name.endsWith(".log")) continue;
    const path = join(dir, name);
    if ((await stat(path)).size <= most) continue;
    await copyFile(path, `${path}.1`);
    await truncate(path);
    cut.push(name);
  }
  return cut;
}

/** Rotates now and then, until it is disposed. */
export function keepLogsSmall({ dir, log }: { dir: string; log: Log }): Disposable {
  const rotate = (): void => {
    rotateLogs(dir).then(
      (logs) => logs.length > 0 && log.info({ logs }, "logs were moved aside"),
      (error: unknown) => log.warn({ err: error }, "logs were not moved aside"),
    );
  };
  rotate();
  const timer = setInterval(rotate, everyMs);
  timer.unref();
  return { [Symbol.dispose]: () => clearInterval(timer) };
}
