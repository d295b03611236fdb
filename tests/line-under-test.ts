/** Functions for tests with a server: ask it, wait for it, give it data. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type AdapterState, type ReplicaState, type RunState, terminalPhases } from "@loraline/contracts";
import { type ApiClient, createApiClient } from "@loraline/client";
import OpenAI from "openai";
import { type Address, program, root } from "./line-process.ts";

export * from "./line-process.ts";

export const base = "smollm2-135m-instruct";

/** Loraline's client, and OpenAI's, for the same server. */
type LineClient = ApiClient & { openai: OpenAI };

export const clientOf = ({ url, apiKey }: Pick<Address, "url" | "apiKey">): LineClient =>
  Object.assign(createApiClient({ url, apiKey }), { openai: new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 2 }) });

/** Runs the CLI against a server; an exit code throws nothing. */
export async function loraline(at: Pick<Address, "url" | "apiKey"> | undefined, args: readonly string[], input?: string) {
  const child = spawn(program, args, {
    stdio: ["pipe", "pipe", "pipe"],
    env: { ...process.env, ...(at === undefined ? {} : { LORALINE_URL: at.url, LORALINE_API_KEY: at.apiKey }) },
  });
  child.stdin.end(input ?? "");
  const [out, err, [code]] = await Promise.all([
    textOf(child.stdout),
    textOf(child.stderr),
    once(child, "exit") as Promise<[number | null]>,
  ]);
  return { code, out, err };
}

async function textOf(stream: NodeJS.ReadableStream): Promise<string> {
  let text = "";
  for await (const chunk of stream) text += chunk.toString();
  return text;
}

/** Polls until `get` returns a value. The message of a timeout has the last result. */
export async function eventually<T>(what: string, timeoutMs: number, get: () => Promise<T | undefined> | T | undefined): Promise<T> {
  const deadline = performance.now() + timeoutMs;
  let last: unknown;
  for (;;) {
    try {
      const found = await get();
      if (found !== undefined) return found;
      last = undefined;
    } catch (error) {
      last = error;
    }
    if (performance.now() > deadline) throw new Error(`not within ${timeoutMs / 1000} s: ${what}`, { cause: last });
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

export const runOver = (line: LineClient, runId: string): Promise<RunState> =>
  eventually(`run ${runId} is over`, 400_000, async () => {
    const run = await line.getRun({ run_id: runId });
    return terminalPhases.has(run.phase) ? run : undefined;
  });

/** @returns the replicas that have proven a version, and whose engine is there. */
export const provenOn = (view: { adapter: AdapterState; replicas: ReplicaState[] }, version: number): ReplicaState[] =>
  view.replicas.filter(
    ({ ready, adapters }) => ready && adapters.some((held) => held.version === version && held.state === "proven" && held.proof !== null),
  );

/** Settings of a training that takes seconds, but changes the adapter enough for a proof. */
export const smallTraining = {
  lora: { r: 4, lora_alpha: 8, target_modules: ["q_proj", "v_proj"] },
  training: { per_device_train_batch_size: 2, max_steps: 6, learning_rate: 2e-3, save_steps: 2 },
  gate: "none" as const,
};

/** @returns the first rows of the sample, in any shape. */
export async function sampleRows(count: number): Promise<{ instruction: string; input: string; output: string }[]> {
  const text = await readFile(join(root, "samples/persona.jsonl"), "utf8");
  return text
    .split("\n")
    .slice(0, count)
    .map((line) => JSON.parse(line) as { instruction: string; input: string; output: string });
}

export const jsonLines = (rows: readonly unknown[]): string => rows.map((row) => `${JSON.stringify(row)}\n`).join("");

export async function fileWith(dir: string, name: string, text: string): Promise<string> {
  const path = join(dir, name);
  await writeFile(path, text);
  return path;
}
