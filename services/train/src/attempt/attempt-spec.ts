/** What one attempt of a run has to do, as the controller asks for it and the courier reads it. Pure. */
import { blobRef, initialAdapter, runSpec, tenantName, traceparent, trainerSpec, twin, ulid } from "@loraline/contracts";
import { z } from "zod";

/** `attempt.json` in the attempt's folder. Where servers, bases and Python are, the courier learns from its environment. */
export const attemptSpec = z.object({
  version: z.literal(1),
  tenant: tenantName,
  runId: ulid,
  attempt: z.int().min(1),
  name: z.string().describe("Of the attempt, and so of its Kubernetes Job or of its folder."),
  runSpec,
  tokens: blobRef.describe("Token manifest."),
  init: initialAdapter.nullable().default(null).describe("The version with which training begins."),
  twins: z.array(twin).default([]).describe("Quantised bases on which the probes are recorded, too."),
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
export type AttemptSpec = z.infer<typeof attemptSpec>;

/** What the controller asks for. The launcher adds the machine. */
export type AttemptRequest = Omit<AttemptSpec, "machine">;

/** The name identifies the attempt: one that is launched twice exists once. Fits a Kubernetes name. */
export const attemptNameOf = (runId: string, attempt: number): string => `train-${runId.toLowerCase()}-${attempt}`;
