/** When rounds are made: one after the other, soon after something changed, and not so often that they keep a core busy. */
import type { Log } from "@loraline/runtime";

/** Between two rounds there is a pause of so many times what the first of them took. */
const restRatio = 4;

interface Rounds extends AsyncDisposable {
  /** Asks for a round after `ms`, or earlier. */
  within(ms: number): void;
  /** Makes the first round; before this none begins. */
  start(): void;
}

/** @param round - what it throws is logged; the next round comes when it is asked for. Disposing waits for the one under way. */
export function createRounds(round: () => Promise<void>, log: Log): Rounds {
  let timer: NodeJS.Timeout | undefined;
  /** When the next round is due (`performance.now`). */
  let due = 0;
  let notBefore = 0;
  let phase: "idle" | "waiting" | "running" | "stopped" = "idle";
  let running: Promise<void> | undefined;
  const plan = (): void => {
    clearTimeout(timer);
    if (phase !== "waiting" || due === Infinity) return;
    timer = setTimeout(begin, Math.max(0, Math.max(due, notBefore) - performance.now()));
  };
  const begin = (): void => {
    phase = "running";
    due = Infinity;
    const startedAt = performance.now();
    running = round()
      .catch((error: unknown) => log.warn({ err: error }, "attempts could not be observed"))
      .finally(() => {
        const now = performance.now();
        notBefore = now + (now - startedAt) * restRatio;
        if (phase === "running") phase = "waiting";
        plan();
      });
  };
  return {
    within(ms) {
      const at = performance.now() + ms;
      if (at >= due) return;
      due = at;
      plan();
    },
    start() {
      phase = "waiting";
      plan();
    },
    async [Symbol.asyncDispose]() {
      phase = "stopped";
      clearTimeout(timer);
      await running;
    },
  };
}
