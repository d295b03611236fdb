/** One server for all end-to-end tests: its start, above all vLLM's, takes longer than most tests. */
import { type AddressInfo, createServer } from "node:net";
import type { TestProject } from "vitest/node";
import { type Address, scratchDir, startLineUnderTest } from "../line-process.ts";

declare module "vitest" {
  export interface ProvidedContext {
    line: Address;
    /** Where the line answers /metrics. */
    metricsPort: number;
  }
}

export async function setup(project: TestProject): Promise<() => Promise<void>> {
  const scratch = await scratchDir();
  const metricsPort = await freePort();
  const line = await startLineUnderTest(scratch.path, ["--metrics-port", String(metricsPort)]);
  const { url, apiKey, natsUrl, natsAuth, stateDir } = line;
  project.provide("line", { url, apiKey, natsUrl, natsAuth, stateDir });
  project.provide("metricsPort", metricsPort);
  return async () => {
    await line[Symbol.asyncDispose]();
    await scratch[Symbol.asyncDispose]();
  };
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => {
    server.listen(0, "127.0.0.1", resolve);
  });
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}
