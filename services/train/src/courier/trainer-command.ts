/** How the trainer is started: by itself, or once for each GPU through torchrun. Pure. */
import type { AttemptSpec } from "../attempt/attempt-spec.ts";
import { trainMethodOf } from "../train-methods.ts";

/** Where the first node's torchrun listens for the others. */
const port = 29_500;
/** How long nodes wait for one another. A node may wait for its device for days, which is no failure. The default of torchrun is 600. */
const meetingSeconds = 30 * 86_400;

/** Share of the grace period that the trainer gets; the rest is for storing the checkpoint. */
const shareOfGrace = 0.6;

/**
 * Python's arguments before the trainer's path. A method that is not distributed is the work of one process, on any number of GPUs.
 *
 * @param node - index of this node, from 0.
 */
export function launchArgs({ machine, runSpec, name }: Pick<AttemptSpec, "machine" | "runSpec" | "name">, node: number): string[] {
  const { processes, nodes, graceSeconds } = machine;
  if (!trainMethodOf(runSpec).distributed || processes * nodes === 1) return [];
  const place = ["--master-addr", firstNodeOf(name), "--master-port", String(port), "--rdzv-conf", `timeout=${meetingSeconds}`];
  const meeting = nodes === 1 ? ["--standalone"] : ["--nnodes", String(nodes), "--node-rank", String(node), ...place];
  const shutdown = String(Math.max(5, Math.floor(graceSeconds * shareOfGrace)));
  // A rank that fails ends the attempt; the controller then starts the next one from a checkpoint.
  const torchrun = ["-m", "torch.distributed.run", ...meeting, "--nproc-per-node", String(processes), "--max-restarts", "0"];
  return [...torchrun, "--shutdown-timeout", shutdown];
}

/** In a JobSet's network: pod 0 of its one replicated Job; see jobset-manifest.ts. */
const firstNodeOf = (name: string): string => `${name}-node-0-0.${name}`;
