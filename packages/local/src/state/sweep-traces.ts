/** Removes old trace files of the server on this machine, because each chat makes one. */
import { readdir, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import type { Log } from "@loraline/runtime";

interface TraceBounds {
  /** Counted from the newest span of the file. */
  maxAgeMs: number;
  maxFiles: number;
  maxBytes: number;
}

const traceBounds: TraceBounds = { maxAgeMs: 14 * 24 * 60 * 60_000, maxFiles: 20_000, maxBytes: 256 * 1024 * 1024 };
const everyMs = 10 * 60_000;

/** Removes what is too old, then the oldest until the rest fits. @returns how many it removed. */
export async function sweepTraces(
  dir: string,
  { maxAgeMs, maxFiles, maxBytes }: TraceBounds = traceBounds,
  nowMs = Date.now(),
): Promise<number> {
  const files: { path: string; at: number; bytes: number }[] = [];
  for (const name of await readdir(dir)) {
    if (!/^[0-9a-f]{32}\.jsonl$/.test(name)) continue;
    const path = join(dir, name);
    const found = await stat(path).catch(() => undefined);
    if (found !== undefined) files.push({ path, at: found.mtimeMs, bytes: found.size });
  }
  files.sort((a, b) => b.at - a.at);
  let removed = 0;
  let kept = 0;
  let bytes = 0;
  for (const file of files) {
    if (nowMs - file.at <= maxAgeMs && kept < maxFiles && bytes + file.bytes <= maxBytes) {
      kept += 1;
      bytes += file.bytes;
      continue;
    }
    // Once a file does not fit, all older ones go too.
    bytes = Number.POSITIVE_INFINITY;
    await rm(file.path, { force: true });
    removed += 1;
  }
  return removed;
}

/** Sweeps now and then, until it is disposed. */
export function keepTracesSwept({ dir, log }: { dir: string; log: Log }): Disposable {
  const sweep = (): void => {
    sweepTraces(dir).then(
      (removed) => removed > 0 && log.info({ removed }, "old traces removed"),
      (error: unknown) => log.warn({ err: error }, "old traces were not removed"),
    );
  };
  sweep();
  const timer = setInterval(sweep, everyMs);
  timer.unref();
  return { [Symbol.dispose]: () => clearInterval(timer) };
}
