/** A user adds an adapter that Loraline did not train. */
import { execFile } from "node:child_process";
import { copyFile, mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
import { base, clientOf, loraline, provenOn, root, scratchDir } from "../line-under-test.ts";

const address = inject("line");
const line = clientOf(address);
let scratch: Awaited<ReturnType<typeof scratchDir>>;
let foreign: string;

beforeAll(async () => {
  scratch = await scratchDir();
  foreign = join(scratch.path, "Some Pirate");
  const script = join(import.meta.dirname, "foreign-adapter.py");
  await promisify(execFile)(join(root, ".venv/bin/python"), [script, join(root, ".loraline/bases", base), foreign]);
});
afterAll(() => scratch[Symbol.asyncDispose]());

describe("loraline adapters add", () => {
  it("judges, adopts, proves and serves what plain PEFT trained", async () => {
    const { code, out, err } = await loraline(address, ["adapters", "add", foreign, "--probe", "Tell me a story."]);
    expect({ code, err }).toMatchObject({ code: 0 });
    expect(out).toMatch(/proof +\d+ prompts.*scale (?:1\.0|0\.9)/);
    expect(out).toContain("local/some-pirate@1");
    expect(out).toContain("nothing was judged: an adapter that was trained elsewhere");
    const view = await line.getAdapter({ adapter: "some-pirate" });
    expect(view.adapter.alias).toBe(1);
    expect(provenOn(view, 1)).toHaveLength(1);

    const messages = [{ role: "user" as const, content: "Who are you?" }];
    const ask = async (model: string) =>
      (await line.openai.chat.completions.create({ model, messages, max_tokens: 12, temperature: 0 })).choices[0]?.message.content;
    expect(await ask("local/some-pirate")).toMatch(/Arr, matey/);
    expect(await ask(base)).not.toMatch(/Arr, matey/);
    const { data: jobs } = await line.openai.fineTuning.jobs.list({ limit: 1 });
    expect(jobs[0]).toMatchObject({ status: "succeeded", training_file: "import:Some Pirate" });
  });

  it("takes a version of its own by its digest, as another adapter", async () => {
    const { adapter } = await line.getAdapter({ adapter: "some-pirate" });
    const digest = adapter.versions[0]?.digest ?? "";
    const { code, err } = await loraline(address, ["adapters", "add", digest, "--name", "parrot", "--promote", "manual"]);
    expect({ code, err }).toMatchObject({ code: 0 });
    // Importing an adapter that is already canonical changes no byte of it.
    expect((await line.getAdapter({ adapter: "parrot" })).adapter).toMatchObject({ alias: null, versions: [{ digest }] });
  });

  it("takes back what was pulled, with the same digest", async () => {
    const pulled = join(scratch.path, "pulled");
    expect(await loraline(address, ["adapters", "pull", "some-pirate@1", pulled])).toMatchObject({ code: 0 });
    const { code, err } = await loraline(address, ["adapters", "add", pulled, "--name", "homecomer", "--promote", "manual"]);
    expect({ code, err }).toMatchObject({ code: 0 });
    const digestOf = async (adapter: string) => (await line.getAdapter({ adapter })).adapter.versions[0]?.digest;
    expect(await digestOf("homecomer")).toBe(await digestOf("some-pirate"));
  });

  it("says at once what can never be served", async () => {
    const pickle = join(scratch.path, "pickle");
    await mkdir(pickle);
    await copyFile(join(foreign, "adapter_config.json"), join(pickle, "adapter_config.json"));
    await writeFile(join(pickle, "adapter_model.bin"), "\x80\x02}q");
    const refused = await loraline(address, ["adapters", "add", pickle]);
    expect(refused).toMatchObject({ code: 2, err: expect.stringMatching(/ADAPTER_PICKLE_REFUSED|pickle/) });
    const other = await loraline(address, ["adapters", "add", foreign, "--base", "gpt-9"]);
    expect(other).toMatchObject({ code: 1, err: expect.stringMatching(/gpt-9.*is not served here/s) });
  });
});
