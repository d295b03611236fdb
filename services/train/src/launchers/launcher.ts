/** The port to whatever runs attempts: child processes on one machine, Jobs on Kubernetes. */
import { blobRef, runSpec, tenantName, traceparent, trainerSpec, ulid } from "@loraline/contracts";
import { z } from "zod";

/** One attempt of a run, as the courier gets it: `job.json` in its folder. Where things are comes from its environment. */
export const trainJob = z.object({
  version: z.literal(1),
  tenant: tenantName,
  runId: ulid,
  attempt: z.int().min(1),
  jobName: z.string(),
  spec: runSpec,
  tokens: blobRef.describe("Token manifest."),
  resume: z.object({ step: z.int(), checkpoint: blobRef }).nullable().describe("Checkpoint to go on from."),
  traceparent: traceparent.nullable(),
  machine: z
    .object({
      nodes: z.int().min(1).default(1),
      processes: z.int().min(1).default(1).describe("Of the trainer on each node: one for each GPU."),
      device: trainerSpec.shape.device,
      graceSeconds: z.int().min(1).default(30).describe("From SIGTERM to SIGKILL."),
    })
    .prefault({})
    .describe("What it runs on: the launcher knows."),
});
export type TrainJob = z.infer<typeof trainJob>;

/** Exit codes of the courier; any other is a crash. */
export const courierExit = {
  /** `run.trained` is stored. */
  trained: 0,
  /** `run.failed` is stored: trying again is useless. */
  failed: 10,
  /** Try again; `outcome.json` in its folder says why. EX_TEMPFAIL of sysexits. */
  retry: 75,
} as const;

/** Names are identity: whoever launches an attempt twice launches one job. Fits a Kubernetes name. */
export const jobNameOf = (runId: string, attempt: number): string => `train-${runId.toLowerCase()}-${attempt}`;

export type AttemptPhase =
  /** It exists and waits for something, such as a device: `message` says for what. */
  | { phase: "pending"; reason: string; message: string }
  | { phase: "running" }
  /** It said the last word: `run.trained` or `run.failed` is stored, if not yet folded. */
  | { phase: "settled" }
  /** It ended without one. `endedAt` in milliseconds since the epoch. */
  | { phase: "failed"; code: string; message: string; endedAt: number }
  /** Could not be read; nothing may be concluded from it. */
  | { phase: "unknown" };

export type Attempt = AttemptPhase & { tenant: string; runId: string; attempt: number; jobName: string };

export interface Launcher {
  /**
   * Starts an attempt, on a machine of the launcher's choice. Launching a name that exists already changes nothing.
   * @returns false when no slot is free.
   */
  launch(job: Omit<TrainJob, "machine">): Promise<boolean>;
  /** Every attempt that is still known, of all runs. Throws when it cannot tell. */
  observe(): Promise<Attempt[]>;
  /** Jobs that may run at once, and how many could be started now. */
  slots(): Promise<{ total: number; free: number }>;
  /** Asks an attempt to end: SIGTERM, and SIGKILL when it does not. Returns at once. */
  stop(jobName: string): Promise<void>;
  /** Forgets an attempt that has ended, with all it left. Nothing happens when there is none. */
  remove(jobName: string): Promise<void>;
  /** Calls back when an attempt of a run may have changed. */
  watch(onChange: (run: { tenant: string; runId: string }) => void): Disposable;
}
