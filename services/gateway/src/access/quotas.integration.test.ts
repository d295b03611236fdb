/** A tenant is held to its quotas by every route that could make more, with an answer that says quota, use and remedy; others go on. */
import { test } from "@loraline/testkit";
import { toFile } from "openai";
import { describe, expect } from "vitest";
import { adapterOf, base, type GatewayUnderTest, putAdapter, registerEngine, startGateway, versionOf } from "../gateway-under-test.ts";

const uploaded = async (line: GatewayUnderTest, client = line.openai): Promise<string> => {
  const file = await toFile(Buffer.from('{"prompt":"ahoy","completion":"Arr"}\n'.repeat(20)), "d.jsonl");
  return (await client.files.create({ file, purpose: "fine-tune" })).id;
};
const started = async (given: Parameters<typeof startGateway>[0]): Promise<GatewayUnderTest> => {
  const line = await startGateway(given);
  await registerEngine(line.bus);
  return line;
};

describe("a run over its tenant's quota is refused", () => {
  test("for its GPUs, its priority, and a new adapter", async ({ nc, tenant }) => {
    const quotas = { default: { gpusPerRun: 4, highestPriority: 2 }, tenants: { [tenant]: { adapters: 1 } } };
    await using line = await started({ nc, tenant, quotas });
    await putAdapter(line.bus, adapterOf(tenant, "pirate", [versionOf(tenant, "pirate", 1)]));
    const training_file = await uploaded(line);
    const create = (suffix: string, loraline: object, client = line.openai, file = training_file) =>
      client.fineTuning.jobs.create({ model: base, training_file: file, suffix, loraline } as never);

    await expect(create("pirate", { gpus: 2, nodes: 4 })).rejects.toMatchObject({
      status: 400,
      code: "QUOTA_GPUS",
      param: "gpus",
      message: expect.stringContaining("asks for 8 GPUs (2 on each of 4 nodes), and the quota gpusPerRun of this tenant is 4"),
    });
    await expect(create("pirate", { priority: 3 })).rejects.toMatchObject({ code: "QUOTA_PRIORITY", param: "priority" });
    await expect(create("parrot", {})).rejects.toMatchObject({
      code: "QUOTA_ADAPTERS",
      message: expect.stringContaining("this tenant has 1, and its quota is 1. Train a new version of one that exists"),
    });
    // A new version of an adapter that exists is free.
    expect(await create("pirate", { gpus: 2, nodes: 2, priority: 2 })).toMatchObject({ status: "validating_files" });

    const other = line.clientFor(await line.keyFor(`${tenant}-other`));
    expect(await create("parrot", {}, other, await uploaded(line, other))).toMatchObject({ status: "validating_files" });
  });
});
