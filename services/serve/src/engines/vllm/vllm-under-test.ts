/** A real vLLM on the CPU for tests. */
import { readFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { BaseRef, ComputeType } from "@loraline/contracts";
import type { ServedParts } from "@loraline/models";
import { nativeComputeType, spawnGuarded } from "@loraline/runtime";
import { vllmArgs, vllmCpuArgs, vllmCpuEnv, vllmEnv } from "./start.ts";

/** The key that it asks for. */
export const vllmKey = "between-agent-and-engine";

/** Starts one with the flags of the local line, and guarded as in a cluster. Resolves when it answers. */
export async function startVllm({
  root,
  base,
  baseDir = join(root, ".loraline/bases", base.name),
  parts,
  logFile,
  computeType = nativeComputeType(process.env),
  chatTemplateFile,
  args = [],
}: {
  root: string;
  base: Pick<BaseRef, "name">;
  /** Folder of the base. Default: the one of its name. */
  baseDir?: string;
  parts?: ServedParts;
  logFile: string;
  computeType?: ComputeType;
  /** Instead of the base's own template. */
  chatTemplateFile?: string;
  /** More of vLLM's flags. */
  args?: string[];
}): Promise<{ url: string; restart(): Promise<void> } & AsyncDisposable> {
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const start = () =>
    spawnGuarded(
      join(root, ".venv/bin/python"),
      [
        join(root, "packages/local/engine.py"),
        ...vllmArgs({
          model: baseDir,
          servedName: base.name,
          host: "127.0.0.1",
          port,
          maxLoraRank: 32,
          maxLoras: 4,
          maxCpuLoras: 16,
          maxModelLen: 2048,
          chatTemplateFile,
          ...(parts && { parts }),
        }),
        ...vllmCpuArgs(computeType),
        "--middleware=loraline_guard.RequireKey",
        "--shutdown-timeout=30",
        ...args,
      ],
      {
        env: {
          PATH: process.env["PATH"],
          HOME: process.env["HOME"],
          OMP_NUM_THREADS: "1",
          ...vllmEnv,
          ...vllmCpuEnv,
          VLLM_API_KEY: vllmKey,
          // Where the guard is.
          PYTHONPATH: import.meta.dirname,
        },
        stdout: logFile,
        stderr: logFile,
      },
    );
  let child = start();
  const healthy = async (): Promise<void> => {
    for (const started = child; ;) {
      const ended = await Promise.race([started.exited, sleep(250)]);
      if (ended !== undefined) throw new Error(`vLLM ended: ${(await readFile(logFile, "utf8")).slice(-2000)}`);
      if (
        await fetch(`${url}/health`).then(
          (response) => response.ok,
          () => false,
        )
      )
        return;
    }
  };
  await healthy();
  return {
    url,
    async restart() {
      child.kill("SIGKILL");
      await child.exited;
      child = start();
      await healthy();
    },
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await child.exited;
    },
  };
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  if (address === null || typeof address === "string") throw new Error("no free port");
  return address.port;
}
