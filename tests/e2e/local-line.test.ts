/**
 * A line of one's own: two bases, each with its engine, one of which takes pictures; stopped, backed up, lost, restored, and served again with
 * one of them. That an adapter learns to name what pictures show is tested where engines are: services/serve/src/engines/vllm/pictures.integration.test.ts.
 */
import { execFile } from "node:child_process";
import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect, it } from "vitest";
import { base, clientOf, eventually, loraline, root, scratchDir, startLineUnderTest } from "../line-under-test.ts";

/** Takes pictures. */
const seeing = "smollm2-135m-pictures";

const python = (script: string, ...args: string[]) => promisify(execFile)(join(root, ".venv/bin/python"), [join(root, script), ...args]);

it("an adapter trained on pictures, on a second base, answers the same after backup, loss and restore", async () => {
  await using scratch = await scratchDir();
  const inScratch = (name: string): string => join(scratch.path, name);
  const [stateDir, bases, foreign, backup] = [inScratch("state"), inScratch("bases"), inScratch("pirate"), inScratch("line.tar.gz")];
  const source = join(root, ".loraline/bases", base);
  expect(await loraline(undefined, ["bases", "--bases", bases, "add", source])).toMatchObject({ code: 0 });
  await Promise.all([
    python("samples/pictures/base.py", "--out", join(bases, seeing)),
    python("samples/pictures/rows.py", inScratch("shapes.zip"), inScratch("unseen")),
  ]);
  const unseen = await readdir(inScratch("unseen"));
  type At = { url: string; apiKey: string };
  const ask = async (at: At, model: string, file: string): Promise<string> => {
    const url = `data:image/png;base64,${await readFile(join(inScratch("unseen"), file), "base64")}`;
    const content = [
      { type: "image_url" as const, image_url: { url } },
      { type: "text" as const, text: "What is in the picture?" },
    ];
    const body = { model, messages: [{ role: "user" as const, content }], max_tokens: 8, temperature: 0 };
    return (await clientOf(at).openai.chat.completions.create(body)).choices[0]?.message.content ?? "";
  };
  const answersOf = async (at: At, model: string): Promise<string[]> => {
    await eventually(`${model} answers`, 300_000, () => ask(at, model, unseen[0] ?? ""));
    return Promise.all(unseen.map((file) => ask(at, model, file)));
  };
  const digestOf = async (at: At) => (await clientOf(at).getAdapter({ adapter: "shapes" })).adapter.versions[0]?.digest;
  const modelsOf = async (at: At) => (await clientOf(at).openai.models.list()).data.map(({ id }) => id);

  let before: { answers: string[]; digest: string | undefined };
  {
    await using line = await startLineUnderTest(stateDir, ["--bases", bases, "--base", base, "--base", seeing]);
    expect(await modelsOf(line)).toEqual(expect.arrayContaining([base, seeing]));
    // Which base it is for must be said before it is read.
    await mkdir(foreign);
    for (const name of ["adapter_config.json", "adapter_model.safetensors"]) await writeFile(join(foreign, name), "");
    expect(await loraline(line, ["adapters", "add", foreign])).toMatchObject({
      code: 2,
      err: expect.stringContaining(`${base}, ${seeing}`),
    });
    const flags = ["--base", seeing, "--name", "shapes", "--epochs", "1", "--learning-rate", "1e-3", "--rank", "16"];
    expect(await loraline(line, ["run", inScratch("shapes.zip"), ...flags])).toMatchObject({ code: 0 });
    before = { answers: await answersOf(line, "local/shapes"), digest: await digestOf(line) };
    expect(before.answers).not.toEqual(await answersOf(line, seeing));
    await expect(ask(line, base, unseen[0] ?? "")).rejects.toMatchObject({ status: 400, code: "pictures_unsupported" });
    const shown = await loraline(line, [
      "chat",
      "local/shapes",
      "--image",
      join(inScratch("unseen"), unseen[0] ?? ""),
      "What is in the picture?",
    ]);
    expect(shown).toMatchObject({ code: 0, out: `${before.answers[0]}\n` });
    const status = JSON.parse((await loraline(undefined, ["status", "--state", stateDir, "--json"])).out) as { bases: { base: string }[] };
    expect(status.bases.map((each) => each.base)).toEqual([base, seeing]);
    expect(await loraline(undefined, ["backup", backup, "--state", stateDir])).toMatchObject({
      code: 1,
      err: expect.stringContaining("loraline stop"),
    });
    expect(await loraline(undefined, ["stop", "--state", stateDir])).toMatchObject({ code: 0, out: expect.stringContaining("stopped") });
  }
  expect(await loraline(undefined, ["backup", backup, "--state", stateDir])).toMatchObject({ code: 0 });
  await rm(stateDir, { recursive: true });
  expect(await loraline(undefined, ["restore", backup, "--state", stateDir])).toMatchObject({ code: 0 });

  await using line = await startLineUnderTest(stateDir, ["--bases", bases, "--base", seeing]);
  expect({ answers: await answersOf(line, "local/shapes"), digest: await digestOf(line) }).toEqual(before);
  expect(await modelsOf(line), "a base that is not served is not offered").not.toContain(base);
});
