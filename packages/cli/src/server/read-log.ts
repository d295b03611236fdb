/** Logs as files: their last lines, and what comes after. */
import { open, stat } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { dim, red, yellow } from "../terminal.ts";

const lookEveryMs = 250;
const chunkBytes = 64 * 1024;

/** @returns the last lines, and the offset after them, from which `followLog` goes on. A line that is still being written is left for it. */
export async function tailOf(path: string, lines: number): Promise<{ shown: string[]; end: number }> {
  await using file = await open(path, "r");
  const { size } = await file.stat();
  let text = Buffer.alloc(0);
  let from = size;
  // One line break more than lines, since the file ends with one.
  while (from > 0 && text.toString("latin1").split("\n").length <= lines + 1) {
    const length = Math.min(chunkBytes, from);
    from -= length;
    const { buffer } = await file.read(Buffer.alloc(length), 0, length, from);
    text = Buffer.concat([buffer, text]);
  }
  const whole = text.lastIndexOf("\n") + 1;
  const all = text.subarray(0, whole).toString("utf8").split("\n").slice(0, -1);
  return { shown: lines === 0 ? [] : all.slice(from > 0 ? Math.max(1, all.length - lines) : -lines), end: size - (text.length - whole) };
}

/** New lines as they come, until the signal. A file that was cut (see rotate-logs.ts) is read from its beginning. */
export async function* followLog(path: string, from: number, signal: AbortSignal): AsyncGenerator<string> {
  let at = from;
  let rest = Buffer.alloc(0);
  while (!signal.aborted) {
    const size = await stat(path).then(
      (info) => info.size,
      () => 0,
    );
    if (size < at) [at, rest] = [0, Buffer.alloc(0)];
    if (size > at) {
      await using file = await open(path, "r");
      const { buffer, bytesRead } = await file.read(Buffer.alloc(Math.min(chunkBytes, size - at)), 0, Math.min(chunkBytes, size - at), at);
      at += bytesRead;
      const text = Buffer.concat([rest, buffer.subarray(0, bytesRead)]);
      const whole = text.lastIndexOf("\n") + 1;
      rest = text.subarray(whole);
      yield* text.subarray(0, whole).toString("utf8").split("\n").slice(0, -1);
      continue;
    }
    await sleep(lookEveryMs, undefined, { signal }).catch(() => {});
  }
}

const levels: Readonly<Record<number, string>> = { 10: "trace", 20: "debug", 30: "info", 40: "WARN", 50: "ERROR", 60: "FATAL" };

/** What a person does not need to see. */
const forMachines = new Set(["trace_id", "span_id", "pid", "hostname", "severity_text", "severity_number"]);

const asText = (value: unknown): string => (typeof value === "string" ? value : JSON.stringify(value ?? ""));

/** A line of ours, which is JSON, for a person; others stay as they are. */
export function lineOfLog(text: string): string {
  if (!text.startsWith("{")) return text;
  let said: Record<string, unknown>;
  try {
    said = JSON.parse(text) as Record<string, unknown>;
  } catch {
    return text;
  }
  const { level, time, service, msg, err, ...more } = said;
  const rest = Object.entries(more).filter(([name]) => !forMachines.has(name));
  if (typeof time !== "number") return text;
  const word = levels[Number(level)] ?? asText(level);
  const marked = Number(level) >= 50 ? red(word) : Number(level) >= 40 ? yellow(word) : word;
  const fields = rest.map(([name, value]) => `${name}=${asText(value)}`);
  const why = typeof err === "object" && err !== null ? `: ${asText((err as { message?: unknown }).message)}` : "";
  const when = new Date(time).toISOString().slice(0, 19).replace("T", " ");
  return `${dim(when)} ${marked.padEnd(5)} ${asText(service)}: ${asText(msg)}${why}${fields.length === 0 ? "" : dim(` ${fields.join(" ")}`)}`;
}
