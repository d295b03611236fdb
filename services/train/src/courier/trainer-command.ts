/** How the trainer is started: by itself, or once for each GPU through torchrun. Pure. */
import type { TrainJob } from "../launchers/launcher.ts";
import { trainMethodOf } from "../train-methods.ts";

/** Where the first node's torchrun listens for the others. */
const port = 29_500;
/** How long nodes wait for one another: one that waits for a device is no failure, however long that takes. torchrun's own is 600. */
const meetingSeconds = 30 * 86_400;

/** Of a share of the time that an attempt has to end: the rest is for storing the checkpoint. */
const shareOfGrace = 0.6;

/**
 * Arguments for Python. One process does what is not distributed, on any number of GPUs.
 *
 * @param node - which one this is, from 0.
 */
export function trainerArgs(
  { machine, spec, jobName }: Pick<TrainJob, "machine" | "spec" | "jobName">,
  { trainerPath, work, node }: { trainerPath: string; work: string; node: number },
): string[] {
  const { processes, nodes, graceSeconds } = machine;
  if (!trainMethodOf(spec).distributed || processes * nodes === 1) return [trainerPath, work];
  const place = ["--master-addr", firstNodeOf(jobName), "--master-port", String(port), "--rdzv-conf", `timeout=${meetingSeconds}`];
  const meeting = nodes === 1 ? ["--standalone"] : ["--nnodes", String(nodes), "--node-rank", String(node), ...place];
  const shutdown = String(Math.max(5, Math.floor(graceSeconds * shareOfGrace)));
  // A rank that fails ends the attempt: what to do then is decided by the line, from a checkpoint.
  const torchrun = ["-m", "torch.distributed.run", ...meeting, "--nproc-per-node", String(processes), "--max-restarts", "0"];
  return [...torchrun, "--shutdown-timeout", shutdown, trainerPath, work];
}

/** In a JobSet's network: pod 0 of its one replicated Job; see jobset-manifest.ts. */
export const firstNodeOf = (jobName: string): string => `${jobName}-node-0-0.${jobName}`;
