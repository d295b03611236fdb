/** How far a long piece of work is, told now and then. */
import type { datasetProgress, EventData } from "@loraline/contracts";

type WorkDone = Omit<EventData<typeof datasetProgress>, "stage">;

interface TellProgressOptions {
  /** Of what is counted; null: nobody knows. */
  total: number | null;
  /** Publishes it. It is for display only, so its failures are ignored. */
  tell: (work: WorkDone, key: string) => Promise<unknown>;
  /** Default 2 s. What takes less is not told at all. */
  everyMs?: number | undefined;
  /** A clock in milliseconds, which only goes forward. */
  now?: () => number;
}

/** @returns takes how much is done by now. It returns at once, and does not throw. */
export function tellProgress({ total, tell, everyMs = 2000, now = () => performance.now() }: TellProgressOptions): (done: number) => void {
  const started = now();
  let toldAt = started;
  let isTelling = false;
  return (done) => {
    const time = now();
    if (isTelling || time - toldAt < everyMs) return;
    toldAt = time;
    isTelling = true;
    const left = total === null || done <= 0 ? null : (((time - started) / done) * Math.max(0, total - done)) / 1000;
    void tell({ done, total, etaSeconds: left === null ? null : Math.round(left * 10) / 10 }, `at-${Date.now()}`)
      .catch(() => undefined)
      .finally(() => (isTelling = false));
  };
}
