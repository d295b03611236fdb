/** Fixtures for tests: `test("...", async ({ nc, tenant }) => ...)`. A server starts when a test first uses it. */
import { randomBytes } from "node:crypto";
import { test as base } from "vitest";
import { startNats } from "./nats-server.ts";
import { startS3 } from "./s3-server.ts";

/**
 * - `nats`: a server with JetStream, one per vitest worker.
 * - `nc`: a connection to it, closed after the test.
 * - `s3`: an S3 server with a bucket, one per vitest worker.
 * - `tenant`: a name no other test uses; keeps tests on one server apart.
 */
export const test = base
  .extend("nats", { scope: "worker" }, async ({}, { onCleanup }) => {
    const nats = await startNats();
    onCleanup(() => nats[Symbol.asyncDispose]());
    return nats;
  })
  .extend("s3", { scope: "worker" }, async ({}, { onCleanup }) => {
    const s3 = await startS3();
    onCleanup(() => s3[Symbol.asyncDispose]());
    return s3;
  })
  .extend("nc", async ({ nats }, { onCleanup }) => {
    const nc = await nats.connect();
    onCleanup(() => nc.close());
    return nc;
  })
  .extend("tenant", () => `t-${randomBytes(6).toString("hex")}`);
