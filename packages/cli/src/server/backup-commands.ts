/** `loraline backup`, `restore` and `upgrade`: the state of the server on this machine, which must not run meanwhile. */
import { mkdir } from "node:fs/promises";
import { join, resolve } from "node:path";
import { makeBackup, readStateVersion, restoreBackup, stopLine } from "@loraline/local/state";
import { type AddCommands, examples } from "../command.ts";
import { byteWords, shortPath, yellow } from "../terminal.ts";

export const addBackupCommands: AddCommands = (program, { globals, print, pid, env, root }) => {
  program
    .command("backup")
    .description("write the state of the stopped server into one file: datasets, adapters, runs, keys; not the bases")
    .argument("<file>", "a new file; .tar or .tar.gz")
    .option("--stop", "stop the server first, if one runs", false)
    .addHelpText("after", examples("loraline backup loraline.tar.gz --stop", "loraline restore loraline.tar.gz --state /data/other"))
    .action(async (file: string, { stop }: { stop: boolean }) => {
      const stateDir = resolve(globals().state);
      if (stop) await stopLine(stateDir, { now: false });
      const made = await makeBackup({ stateDir, file, pid });
      print({ ...made, file: resolve(file) }, () => [
        `${shortPath(resolve(file))}: ${byteWords(made.bytes)}, written by ${made.version}`,
        "It holds API keys and secrets, and only you may read it.",
        ...(made.bases.length === 0 ? [] : [`Bases are not in it: ${made.bases.join(", ")}.`]),
      ]);
    });

  program
    .command("restore")
    .description("make the state of a backup that of an empty state directory")
    .argument("<file>", "a file of `loraline backup`")
    .action(async (file: string) => {
      const stateDir = resolve(globals().state);
      const { bases, ...made } = await restoreBackup({ stateDir, file, pid });
      print({ ...made, bases, stateDir }, () => [
        `${shortPath(stateDir)}: as it was on ${made.at.slice(0, 19).replace("T", " ")} UTC, written by ${made.version}`,
        `Start it: loraline up ${bases.map((base) => `--base ${base}`).join(" ")}`.trimEnd(),
      ]);
    });

  program
    .command("upgrade")
    .description("bring the state of the stopped server to this release: a backup first, then every entry is read once")
    .option("--stop", "stop the server first, if one runs", false)
    .option("--no-backup", "without a backup")
    .option("--tenant <name>", "tenant of the server's API key", env.LORALINE_TENANT ?? "local")
    .addHelpText("after", examples("loraline upgrade --stop"))
    .action(async ({ stop, backup, tenant }: { stop: boolean; backup: boolean; tenant: string }) => {
      const stateDir = resolve(globals().state);
      if (stop) await stopLine(stateDir, { now: false });
      const before = (await readStateVersion(stateDir)) ?? "before-1";
      const backups = `${stateDir}-backups`;
      const file = join(backups, `${before}-${new Date().toISOString().slice(0, 19).replaceAll(":", "")}.tar`);
      if (backup) {
        await mkdir(backups, { recursive: true, mode: 0o700 });
        await makeBackup({ stateDir, file, pid });
      }
      // Loaded only now, since the services and their libraries take long to load.
      const { upgradeState } = await import("@loraline/local");
      const nats = env.LORALINE_NATS_SERVER ?? join(root, ".venv/bin/nats-server");
      const done = await upgradeState({ stateDir, tenant, nats, env, pid });
      const entries = Object.values(done.read).reduce((sum, count) => sum + count, 0);
      print({ ...done, backup: backup ? file : null }, () => [
        `${shortPath(stateDir)}: from ${done.from ?? "an earlier release"} to ${done.to}; ${entries} entries are readable, ${done.unread.length} are not`,
        ...done.unread.map((entry) => yellow(`not readable: ${entry}`)),
        ...(backup
          ? [`Back again: move ${shortPath(stateDir)} away, then \`loraline restore ${shortPath(file)}\` with the release before.`]
          : []),
      ]);
    });
};
