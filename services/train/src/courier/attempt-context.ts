/** What every part of a courier works with. */
import type { Bus } from "@loraline/bus";
import { type EventAddress, runCancelRequested, runWaiting } from "@loraline/contracts";
import type { Objects } from "@loraline/objects";
import type { KeepTryingOptions, Log, Telemetry } from "@loraline/runtime";
import type { AttemptSpec } from "../attempt/attempt-spec.ts";
import type { RunningTrainer, TrainerHost } from "../trainer-host/trainer-host.ts";
import type { Outbox } from "./outbox.ts";
import type { CheckpointUploads } from "./upload-checkpoints.ts";

export interface CourierDeps {
  spec: AttemptSpec;
  /** The attempt's folder; see `attempt-files.ts` for what is in it. */
  dir: string;
  bus: Bus;
  objects: Objects;
  telemetry: Telemetry;
  /** Names the service `trainer`, whose phases become spans. */
  trainerTelemetry: Telemetry;
  log: Log;
  /** Bases in Hugging Face's layout, each with a base.json. */
  basesDir: string;
  /** The trainer's folder. All that is in it after the trainer began may be what an attacker put there: see trainer-files.ts. */
  work: string;
  trainerHost: TrainerHost;
  /** Aborted when the attempt should stop; the trainer then saves a checkpoint first. */
  stop: AbortSignal;
  /** A trainer that shows no sign of life for so long hangs: it is ended, and the next attempt goes on. Default 30 minutes. */
  hangMs?: number;
  /** Index of this node among those of the attempt. Only the first node, 0, publishes events. */
  node?: number;
  /**
   * Tells this pod from an earlier pod of the same attempt. There is an earlier one when Kueue suspended the attempt's Job and resumed
   * it later.
   */
  incarnation?: string | undefined;
  /**
   * In a pod: an attempt that is stopped leaves it to the controller to publish `run.attempt-ended`, because only the controller sees
   * why the pod was stopped. The same holds for a trainer that was killed.
   */
  controllerTellsStop?: boolean;
}

export interface AttemptContext extends CourierDeps {
  at: EventAddress;
  outbox: Outbox;
  /** Of the span `train`: every event and every phase of the trainer continues it. */
  traceparent: string;
  /** What exists from the trainer's start on. `conclude` ends it, whatever happened in between. */
  running: { trainer?: RunningTrainer; uploads?: CheckpointUploads };
}

export const isFirstNode = ({ node = 0 }: Pick<AttemptContext, "node">): boolean => node === 0;

/** Prefix of message ids of this pod's events. */
export const eventKeyOf = ({ spec, incarnation }: Pick<AttemptContext, "spec" | "incarnation">): string =>
  `attempt-${spec.attempt}${incarnation === undefined ? "" : `@${incarnation}`}`;

export const isCancelRequested = async ({ bus, at }: Pick<AttemptContext, "bus" | "at">): Promise<boolean> =>
  (await bus.last(runCancelRequested, at)) !== undefined;

/** Publishes what the attempt waits for: once for each reason, however many files wait for it, and however often they are tried. */
export function waitTeller(attempt: Pick<AttemptContext, "outbox" | "spec" | "incarnation">, when: "fetch" | "store") {
  let lastCode: string | undefined;
  let times = 0;
  return ((reason) => {
    if (lastCode === reason?.code) return;
    lastCode = reason?.code;
    void attempt.outbox.send(runWaiting, { stage: "train", reason }, `${eventKeyOf(attempt)}/${when}-${++times}`);
  }) satisfies KeepTryingOptions["onWait"];
}
