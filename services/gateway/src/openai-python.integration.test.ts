/** The official Python package as the client. */
import { spawn } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { buckets, events } from "@loraline/contracts";
import { test as testWithNats } from "@loraline/testkit";
import { expect } from "vitest";
import {
  adapterOf,
  base,
  heldBy,
  playIngested,
  playServed,
  playTokenized,
  playTrained,
  putAdapter,
  putReplica,
  registerEngine,
  replicaOf,
  startEngine,
  startGateway,
  versionOf,
} from "./gateway-under-test.ts";
import { datasetIdOf, runIdOf } from "./openai-ids.ts";

const python = join(import.meta.dirname, "../../../.venv/bin/python");

interface Program extends Disposable {
  /** Runs one step of the program and returns what it printed. */
  step(...args: string[]): Promise<unknown>;
}

function startProgram(env: Record<string, string>): Program {
  const child = spawn(python, [join(import.meta.dirname, "openai_conformance.py")], { env, stdio: ["pipe", "pipe", "pipe"] });
  let complaints = "";
  child.stderr.on("data", (part: Buffer) => {
    complaints += part.toString();
  });
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]();
  return {
    async step(...args) {
      child.stdin.write(`${JSON.stringify(args)}\n`);
      const line = await lines.next();
      if (line.done === true) throw new Error(`the program ended in step ${args[0]}:\n${complaints}`);
      return JSON.parse(line.value) as unknown;
    },
    [Symbol.dispose]: () => child.kill("SIGKILL"),
  };
}

testWithNats(
  "a Python program uploads, trains, follows, cancels, chats, goes on from responses, uploads in parts and understands errors",
  async ({ nc, tenant }) => {
    await using line = await startGateway({ nc, tenant });
    await using folder = await temporaryFolder();
    using program = startProgram({ OPENAI_BASE_URL: `${line.url}/v1`, OPENAI_API_KEY: line.key });
    const { step } = program;
    await registerEngine(line.bus);

    const path = join(folder.path, "sea shanties.jsonl");
    await writeFile(path, '{"prompt":"ahoy","completion":"Arr ☠"}\n'.repeat(20));
    const { file, job } = (await step("submit", base, path)) as { file: string; job: string };
    const runId = runIdOf(job) ?? "";
    const requested = await line.bus.last(events.runRequested, { tenant, id: runId });
    expect(requested?.data.spec).toMatchObject({
      adapter: "pirate",
      lora: { r: 16 },
      tokenize: { max_length: 512 },
      training: { seed: 7, num_train_epochs: 2 },
      metadata: { team: "sea" },
    });

    await playIngested(line.bus, tenant, datasetIdOf(file) ?? "");
    await playTokenized(line.bus, tenant, runId);
    await playTrained(line.bus, tenant, runId);
    await playServed(line.bus, tenant, runId, "pirate");
    await expect.poll(async () => (await line.openai.fineTuning.jobs.retrieve(job)).status).toBe("succeeded");
    expect(await step("follow", job)).toEqual({
      status: "succeeded",
      model: `ft:${base}:${tenant}:pirate:1`,
      messages: expect.objectContaining({ length: 9, 8: `Created fine-tuning job: ${job}` }),
      losses: [1, 1.5, 3],
      checkpoints: [2],
    });

    const version = versionOf(tenant, "pirate", 1);
    const adapter = adapterOf(tenant, "pirate", [version]);
    await using engine = await startEngine(base, version.engineName);
    await putAdapter(line.bus, adapter);
    await putReplica(line.bus, replicaOf("r1", engine.url, [heldBy(adapter, version)]));
    await expect.poll(async () => (await line.openai.models.list()).data.length).toBe(3);
    expect(await step("chat", `ft:${base}:${tenant}:pirate:1`)).toEqual({
      model: `${tenant}/pirate@1`,
      answer: "Arr, matey ☠",
      parts: ["Arr", ", mat", "ey ☠", ""],
      last_line: "data: [DONE]",
      text: "Arr, matey ☠",
      models: [base, `${tenant}/pirate`, `${tenant}/pirate@1`],
      retrieved: `${tenant}/pirate@1`,
    });
    expect(await step("chat", `${tenant}/pirate`)).toMatchObject({ model: `${tenant}/pirate@1`, retrieved: `${tenant}/pirate` });

    expect(await step("respond", `${tenant}/pirate`)).toEqual({
      model: `${tenant}/pirate@1`,
      text: "Arr, matey ☠",
      last: "response.completed",
      tokens: 6,
    });
    expect(await step("upload_in_parts", path)).toEqual({ status: "completed", name: "sea shanties.jsonl" });

    const cancelling = step("cancel", base, file);
    let cancelled: string | undefined;
    await expect
      .poll(
        async () => {
          cancelled = (await line.openai.fineTuning.jobs.list({ limit: 1 })).data[0]?.id;
          return line.bus.last(events.runCancelRequested, { tenant, id: runIdOf(cancelled ?? "") ?? runId });
        },
        { timeout: 60_000 },
      )
      .toBeDefined();
    await line.bus.publish(events.runCancelled, { tenant, id: runIdOf(cancelled ?? "") ?? "" }, { by: "test" });
    expect(await cancelling).toEqual({ job: cancelled, status: "cancelled" });

    expect(await step("failures", base, file)).toEqual([
      ["AuthenticationError", "invalid_api_key", null],
      ["NotFoundError", "model_not_found", "model"],
      ["BadRequestError", "empty_file", "file"],
      ["BadRequestError", "invalid_purpose", "purpose"],
      ["NotFoundError", "not_found", "id"],
      ["BadRequestError", "BASE_UNKNOWN", "model"],
      ["BadRequestError", "invalid_training_file", "training_file"],
      ["BadRequestError", "RANK_TOO_HIGH", "loraline.lora.r"],
      ["NotFoundError", "not_found", "fine_tuning_job_id"],
    ]);
    await (await line.bus.bucket(buckets.replicas)).delete("local.r1");
  },
);

async function temporaryFolder(): Promise<AsyncDisposable & { path: string }> {
  const path = await mkdtemp(join(tmpdir(), "loraline-python-"));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) };
}
