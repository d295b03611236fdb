/** A replica that presents conversations otherwise than its engine is registered with. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type BaseRef, buckets, type EngineRecord } from "@loraline/contracts";
import { createSimulatedEngine, test as it } from "@loraline/testkit";
import { expect } from "vitest";
import { serveUnderTest } from "../serve-under-test.ts";

const base: BaseRef = { name: "tiny", revision: "1", digest: `sha256:${"b".repeat(64)}` };
const until = { timeout: 60_000, interval: 50 };

it("a replica with another template is not ready, says why with both texts, and is ready once it has the right one", async ({
  nc,
  tenant,
}) => {
  const dir = await mkdtemp(join(tmpdir(), "loraline-template-"));
  await using engine = await createSimulatedEngine({ base: base.name });
  await using serve = await serveUnderTest({ nc, tenant, dir, base });
  const record: EngineRecord = {
    engine: serve.engine,
    base,
    maxLoraRank: 32,
    maxLoras: 4,
    maxCpuLoras: 16,
    maxModelLen: 2048,
    tenants: [tenant],
    templateProbe: { messages: [{ role: "user", content: "Hi" }], text: "<s>Hi</s>", input_ids: [1, 7, 2] },
    updatedAt: new Date().toISOString(),
  };
  await (await serve.bus.bucket(buckets.engines)).put(serve.engine, record);
  engine.behaviour.presents = [7, 2];
  await using agent = await serve.startAgent(engine.url);
  expect(agent).toBeDefined();
  await expect.poll(async () => (await serve.replica())?.problem?.code, until).toBe("TEMPLATE_MISMATCH");
  const wrong = await serve.replica();
  expect(wrong?.ready).toBe(false);
  expect(wrong?.problem?.message).toMatch(/makes "<7><2>", where "<s>Hi<\/s>" was trained/);

  engine.behaviour.presents = [1, 7, 2];
  await expect.poll(async () => (await serve.replica())?.ready, until).toBe(true);
  expect((await serve.replica())?.problem).toBeNull();

  // The next process has it wrong again.
  await engine.stop();
  engine.behaviour.presents = [1, 7];
  await engine.start();
  await expect.poll(async () => (await serve.replica())?.problem?.code, until).toBe("TEMPLATE_MISMATCH");
  expect((await serve.replica())?.ready).toBe(false);

  // One that does not say is taken as it is.
  await engine.stop();
  engine.behaviour.presents = undefined;
  await engine.start();
  await expect.poll(async () => (await serve.replica())?.ready, until).toBe(true);
  await rm(dir, { recursive: true, force: true });
});
