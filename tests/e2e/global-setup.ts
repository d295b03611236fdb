/** One server for all end-to-end tests: its start, above all vLLM's, takes longer than most tests. */
import type { TestProject } from "vitest/node";
import { type Address, scratchDir, startLineUnderTest } from "../line-process.ts";

declare module "vitest" {
  export interface ProvidedContext {
    line: Address;
  }
}

export async function setup(project: TestProject): Promise<() => Promise<void>> {
  const scratch = await scratchDir();
  const line = await startLineUnderTest(scratch.path);
  const { url, apiKey, natsUrl, natsAuth, stateDir } = line;
  project.provide("line", { url, apiKey, natsUrl, natsAuth, stateDir });
  return async () => {
    await line[Symbol.asyncDispose]();
    await scratch[Symbol.asyncDispose]();
  };
}
