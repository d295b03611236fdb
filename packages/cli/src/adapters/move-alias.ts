/** A move of the alias, also to a version that has to be loaded again first. */
import { setTimeout as sleep } from "node:timers/promises";
import type { ApiClient } from "@loraline/client";
import { exitCodes, Failure, failureOf } from "../failure.ts";
import { type Terminal, writeLine } from "../terminal.ts";
import type { AdapterView } from "./show-adapter.ts";

const lookEveryMs = 500;

/**
 * Asks for a move, and waits while its version, which was retired, is loaded and proven again. Ctrl-C leaves the move going.
 * @param ask - a call of `promoteAdapter` or `rollbackAdapter`.
 * @throws Failure with the reason when the move was given up.
 */
export async function moveAlias(
  api: Pick<ApiClient, "getAdapter">,
  adapter: string,
  ask: () => Promise<AdapterView>,
  terminal: Pick<Terminal, "err" | "signal">,
): Promise<AdapterView> {
  try {
    return await ask();
  } catch (error) {
    const { code, message } = failureOf(error);
    if (code !== "version_loading") throw error;
    writeLine(terminal.err, message);
  }
  for (;;) {
    const view = await api.getAdapter({ adapter });
    if (!view.adapter.awaiting) {
      const given = view.adapter.history.findLast(({ kind }) => kind !== "retired" && kind !== "recalled");
      if (given?.kind === "not-moved")
        throw new Failure(exitCodes.failed, given.code ?? "NOT_MOVED", `the alias did not move: ${given.reason}.`);
      return view;
    }
    if (terminal.signal.aborted) throw new Failure(130, "INTERRUPTED", "the move goes on without this command");
    await sleep(lookEveryMs, undefined, { signal: terminal.signal }).catch(() => {});
  }
}
