/** A trainer that runs, followed by what it writes into its folder: lines of progress.jsonl, and at last result.json. */
import { watch } from "node:fs";
import { lstat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { type TrainerResult, trainerResult } from "@loraline/contracts";
import type { Log } from "@loraline/runtime";
import { readTrainerJson } from "../attempt/trainer-files.ts";
import type { RunningTrainer, TrainerExit } from "../trainer-host/trainer-host.ts";
import { followLines } from "./follow-lines.ts";

export interface FollowTrainerOptions {
  /** The trainer's folder. */
  work: string;
  trainer: Pick<RunningTrainer, "exited" | "kill">;
  onLine(line: string): void;
  /** Phase and step, for the message about a trainer that hangs. */
  where(): string;
  /** When given, several nodes meet before training begins: called when they have met. Until then nothing hangs. */
  onNodesMet?: () => void;
  /** A trainer that writes nothing for so long, in milliseconds, hangs and is killed. */
  hangMs: number;
  log: Log;
}

export interface FollowedTrainer {
  /** undefined: the result is there, and the process is still ending. */
  exit: TrainerExit | undefined;
  result: TrainerResult | undefined;
  /** Why it was taken for hanging, and killed. */
  hangs: string | undefined;
}

/** Changes in the folder wake the reader. It also looks this often, because some file systems report no changes. */
const pollMs = 250;

/** Resolves when the trainer has succeeded or ended. It does not wait for the end of one that has succeeded: tearing Python down takes a while. */
export async function followTrainer(options: FollowTrainerOptions): Promise<FollowedTrainer> {
  const { work, trainer, onLine, where, onNodesMet, hangMs, log } = options;
  const progressFile = join(work, "progress.jsonl");
  await using lines = followLines(progressFile, dirname(work));
  let exit: TrainerExit | undefined;
  let hangs: string | undefined;
  let lastSign = { mtimeMs: 0, at: performance.now() };
  let meeting = onNodesMet !== undefined;
  let wake = (): void => {};
  const watcher = watch(work, () => wake());
  watcher.on("error", () => {}); // the system has no more inotify watches: polling does
  void trainer.exited.then((how) => {
    exit = how;
    wake();
  });
  try {
    for (;;) {
      const changed = new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, pollMs);
        wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
      // In this order nothing is missed that was written before the end.
      const ended = exit;
      const result = await readTrainerJson(join(work, "result.json"), dirname(work), trainerResult);
      const mtimeMs = await lstat(progressFile).then(
        (file) => file.mtimeMs,
        () => 0,
      );
      if (meeting && mtimeMs > 0) {
        meeting = false;
        onNodesMet?.();
      }
      for (const line of await lines.read()) onLine(line);
      if (ended !== undefined || result?.status === "succeeded") return { exit: ended, result, hangs };
      if (meeting || mtimeMs !== lastSign.mtimeMs) lastSign = { mtimeMs, at: performance.now() };
      if (hangs === undefined && performance.now() - lastSign.at > hangMs) {
        hangs = `the trainer gave no sign of life for ${Math.round(hangMs / 1000)} s (${where()}) and was ended`;
        log.error(hangs);
        trainer.kill("SIGKILL");
      }
      await changed;
    }
  } finally {
    watcher.close();
  }
}
