import { mkdir, mkdtempDisposable, readdir, readFile, stat, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test as base, expect } from "vitest";
import { makeBackup, restoreBackup } from "./backup.ts";
import { keepEngineNames, lockStateDir } from "./state-dir.ts";

const { pid } = process;
const test = base.extend("dirs", async ({}, { onCleanup }) => {
  const dir = await mkdtempDisposable(join(tmpdir(), "loraline-backup-"));
  onCleanup(() => dir.remove());
  const stateDir = join(dir.path, "state");
  await mkdir(join(stateDir, "nats/jetstream"), { recursive: true });
  await mkdir(join(stateDir, "logs"));
  await mkdir(join(stateDir, "adapters-twin"));
  await writeFile(join(stateDir, "nats/jetstream/1.blk"), "messages".repeat(10_000));
  await writeFile(join(stateDir, "api-key"), "ll-secret\n", { mode: 0o600 });
  await keepEngineNames(stateDir, { small: "local", twin: "twin" });
  return { dir: dir.path, stateDir };
});

test.for([".tar", ".tar.gz"])(
  "a state comes back from a %s as it was, without what the next start makes again",
  async (ending, { dirs }) => {
    const { dir, stateDir } = dirs;
    const file = join(dir, `line${ending}`);
    expect(await makeBackup({ stateDir, file, pid })).toMatchObject({ bases: ["small", "twin"], bytes: (await stat(file)).size });
    expect((await stat(file)).mode & 0o777, "it holds secrets").toBe(0o600);
    const other = join(dir, "other");
    expect(await restoreBackup({ stateDir: other, file, pid })).toMatchObject({ bases: ["small", "twin"] });
    expect((await readdir(other)).toSorted()).toEqual(["api-key", "engines.json", "nats"]);
    for (const name of ["nats/jetstream/1.blk", "api-key", "engines.json"]) {
      expect(await readFile(join(other, name), "utf8"), name).toBe(await readFile(join(stateDir, name), "utf8"));
    }
    expect((await stat(join(other, "api-key"))).mode & 0o777).toBe(0o600);
  },
);

test("nothing is overwritten, and a running server is not copied", async ({ dirs }) => {
  const { dir, stateDir } = dirs;
  const file = join(dir, "line.tar.gz");
  await expect(makeBackup({ stateDir: join(dir, "empty"), file, pid })).rejects.toMatchObject({ code: "STATE_EMPTY" });
  await expect(makeBackup({ stateDir, file: join(dir, "line.zip"), pid })).rejects.toMatchObject({ code: "BACKUP_NAME_INVALID" });
  const running = await lockStateDir(stateDir, pid);
  await expect(makeBackup({ stateDir, file, pid })).rejects.toMatchObject({ code: "LINE_RUNNING" });
  await running[Symbol.asyncDispose]();
  await makeBackup({ stateDir, file, pid });
  await expect(makeBackup({ stateDir, file, pid })).rejects.toMatchObject({ code: "BACKUP_EXISTS" });
  await expect(restoreBackup({ stateDir, file, pid })).rejects.toMatchObject({ code: "STATE_NOT_EMPTY" });
  await expect(makeBackup({ stateDir, file: join(dir, "nowhere/line.tar"), pid })).rejects.toMatchObject({ code: "BACKUP_NOT_WRITTEN" });
  expect((await readdir(dir)).toSorted(), "no half backup").toEqual(["line.tar.gz", "state"]);
});

test("a broken backup, and what is none, change nothing", async ({ dirs }) => {
  const { dir, stateDir } = dirs;
  const file = join(dir, "line.tar.gz");
  await makeBackup({ stateDir, file, pid });
  await truncate(file, Math.floor((await stat(file)).size / 2));
  const other = join(dir, "other");
  const refused = expect.objectContaining({
    code: "BACKUP_INVALID",
    message: expect.stringContaining("Nothing was changed") as string,
  }) as Error;
  await expect(restoreBackup({ stateDir: other, file, pid })).rejects.toEqual(refused);
  await writeFile(file, "not an archive");
  await expect(restoreBackup({ stateDir: other, file, pid })).rejects.toEqual(refused);
  await expect(restoreBackup({ stateDir: other, file: join(dir, "nosuch.tar"), pid })).rejects.toEqual(refused);
  expect(await readdir(other)).toEqual([]);
});
