import { appendFile, mkdtempDisposable, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { followLog, lineOfLog, tailOf } from "./read-log.ts";

it("gives the last lines of a file of any size, whole", async () => {
  await using dir = await mkdtempDisposable(join(tmpdir(), "loraline-log-"));
  const file = join(dir.path, "line.log");
  const all = Array.from({ length: 5000 }, (_, n) => `Zeile ${n} äöü ${"x".repeat(n % 90)}`);
  await writeFile(file, `${all.join("\n")}\nnot yet whole`);
  for (const lines of [0, 1, 50, 3000, 9999])
    expect((await tailOf(file, lines)).shown, String(lines)).toEqual(lines === 0 ? [] : all.slice(-lines));
  await writeFile(file, "");
  expect(await tailOf(file, 5)).toEqual({ shown: [], end: 0 });
});

it("goes on from there, also when the file was cut meanwhile", async () => {
  await using dir = await mkdtempDisposable(join(tmpdir(), "loraline-log-"));
  const file = join(dir.path, "line.log");
  await writeFile(file, "one\ntwo\nthr");
  const stop = new AbortController();
  const { end } = await tailOf(file, 1);
  const lines = followLog(file, end, stop.signal);
  const next = async () => (await lines.next()).value as string | undefined;
  await appendFile(file, "ee\n");
  expect(await next()).toBe("three");
  await truncate(file);
  await appendFile(file, "new\n");
  expect(await next()).toBe("new");
  stop.abort();
  expect(await next()).toBeUndefined();
});

it("shows a line of ours to a person, and others as they are", () => {
  const time = Date.parse("2026-11-29T09:00:00Z");
  const line = JSON.stringify({
    level: 50,
    time,
    service: "agent",
    runId: "R",
    trace_id: "t",
    err: { message: "no room" },
    msg: "not loaded",
  });
  expect(lineOfLog(line)).toBe("2026-11-29 09:00:00 ERROR agent: not loaded: no room runId=R");
  for (const other of ["[19061] NATS is ready", '{"not":"ours"}', "{broken"]) expect(lineOfLog(other)).toBe(other);
});
