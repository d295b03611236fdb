/** Ends the server that runs on a state directory, also one that is only starting. */
import { setTimeout as sleep } from "node:timers/promises";
import { PermanentError, signalProcess } from "@loraline/runtime";
import { readOwner } from "./state-dir.ts";

/** An orderly end takes a few seconds; main.ts of the CLI ends the server by itself after 20. */
const withinMs = 40_000;

/**
 * @param options.now - do not wait for an orderly end: a running training then goes on from its last checkpoint, not from where it is.
 * @returns its pid; undefined: none runs.
 * @throws PermanentError NOT_STOPPED
 */
export async function stopLine(stateDir: string, { now }: { now: boolean }): Promise<number | undefined> {
  const owner = await readOwner(stateDir);
  if (owner === undefined) return undefined;
  signalProcess(owner.pid, now ? "SIGKILL" : "SIGTERM");
  for (const end = performance.now() + withinMs; performance.now() < end;) {
    if ((await readOwner(stateDir))?.pid !== owner.pid) return owner.pid;
    await sleep(50);
  }
  throw new PermanentError(
    "NOT_STOPPED",
    `the server (pid ${owner.pid}) still runs after ${withinMs / 1000} s. End it with \`loraline stop --now\`.`,
  );
}
