/** The port to what runs attempts: child processes on one machine, Jobs on Kubernetes. */
import type { RunSpec } from "@loraline/contracts";
import type { AttemptRequest } from "../attempt/attempt-spec.ts";

export type AttemptPhase =
  /** It exists and waits, for example for a device: `message` says for what. */
  | { phase: "pending"; reason: string; message: string }
  | { phase: "running" }
  /** It ended with a result: `run.trained` or `run.failed` is stored, though perhaps not yet folded into the run's state. */
  | { phase: "concluded" }
  /** It ended without a result. `endedAt` in milliseconds since the epoch. */
  | { phase: "failed"; code: string; message: string; endedAt: number }
  /** It could not be observed; nothing may be concluded from that. */
  | { phase: "unknown" };

export type Attempt = AttemptPhase & { tenant: string; runId: string; attempt: number; name: string };

export interface Slots {
  total: number;
  free: number;
  /** Attempts of one tenant that may wait in the cluster at once, so that they do not fill its scheduler's queue. Absent: any number. */
  pendingPerTenant?: number | undefined;
}

export interface AttemptSize {
  slots: number;
  gpus: number;
}

export interface Launcher {
  /**
   * Starts an attempt, on a machine of the launcher's choice. Nothing changes when an attempt of this name exists already.
   * @returns false when no slot is free.
   */
  launch(request: AttemptRequest): Promise<boolean>;
  /** Every attempt that is still known, of all runs. Throws when it cannot tell. */
  observe(): Promise<readonly Attempt[]>;
  /** Those of one run, at a cost that does not grow with the number of runs. Throws when it cannot tell. */
  attemptsOf(run: { tenant: string; runId: string }): Promise<readonly Attempt[]>;
  /** Slots that attempts may take at once, and how many are free now. */
  slots(): Promise<Slots>;
  /** What an attempt of the run takes. */
  sizeOf(spec: RunSpec): AttemptSize;
  /** Asks an attempt to end: SIGTERM, and SIGKILL when it does not. Returns at once. */
  stop(name: string): Promise<void>;
  /** Forgets an attempt that has ended, with all it left. Nothing happens when there is none. */
  remove(name: string): Promise<void>;
  /** Calls back when an attempt of a run may have changed. */
  watch(onChange: (run: { tenant: string; runId: string }) => void): Disposable;
}
