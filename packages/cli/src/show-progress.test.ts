import { PassThrough } from "node:stream";
import { expect, it } from "vitest";
import { showBytes } from "./show-progress.ts";

const MiB = 1024 ** 2;

it("shows bytes that are sent, on a terminal as a bar and elsewhere as lines, and again when they are sent again", async () => {
  const err = Object.assign(new PassThrough(), { isTTY: false });
  const shown = showBytes({ err, columns: 80 }, "uploading", 4 * MiB, 0);
  shown.add(MiB);
  shown.restart();
  shown.add(3 * MiB);
  shown.end();
  expect(String(err.read())).toMatch(/^uploading: 1 MiB\/4 MiB · ETA \d+(\.\d+)? m?s\n$/);

  const tty = Object.assign(new PassThrough(), { isTTY: true, cursorTo() {}, clearLine() {} });
  let drawn = "";
  tty.on("data", (piece: Buffer) => (drawn += piece.toString()));
  const bar = showBytes({ err: tty, columns: 80 }, "uploading", 4 * MiB, 0);
  bar.add(4 * MiB);
  bar.end();
  await new Promise(setImmediate);
  expect(drawn).toContain("4 MiB/4 MiB");
});

it("says nothing of what is quick", () => {
  const err = new PassThrough();
  const shown = showBytes({ err, columns: 80 }, "uploading", 10);
  shown.add(10);
  shown.end();
  expect(err.read()).toBeNull();
});
