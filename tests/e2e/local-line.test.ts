/** A line of one's own: two bases, each with its engine; stopped, backed up, lost, restored, and served again with one of them. */
import { execFile } from "node:child_process";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { expect, it } from "vitest";
import { base, clientOf, eventually, loraline, root, scratchDir, startLineUnderTest } from "../line-under-test.ts";

it("an adapter on a second base answers with the same digest after backup, loss and restore", async () => {
  await using scratch = await scratchDir();
  const [stateDir, bases, foreign, backup] = ["state", "bases", "pirate", "line.tar.gz"].map((name) => join(scratch.path, name)) as [
    string,
    string,
    string,
    string,
  ];
  const source = join(root, ".loraline/bases", base);
  for (const name of [base, "twin"]) {
    expect(await loraline(undefined, ["bases", "--bases", bases, "add", source, "--name", name])).toMatchObject({ code: 0 });
  }
  await promisify(execFile)(join(root, ".venv/bin/python"), [
    join(import.meta.dirname, "foreign-adapter.py"),
    join(bases, "twin"),
    foreign,
  ]);
  const ask = (at: { url: string; apiKey: string }) =>
    eventually("the adapter answers", 300_000, async () => {
      const messages = [{ role: "user" as const, content: "Who are you?" }];
      const body = { model: "local/pirate", messages, max_tokens: 12, temperature: 0 };
      return (await clientOf(at).openai.chat.completions.create(body)).choices[0]?.message.content ?? undefined;
    });
  const digestOf = async (at: { url: string; apiKey: string }) =>
    (await clientOf(at).getAdapter({ adapter: "pirate" })).adapter.versions[0]?.digest;
  const modelsOf = async (at: { url: string; apiKey: string }) => (await clientOf(at).openai.models.list()).data.map(({ id }) => id);

  let before: { answer: string; digest: string | undefined };
  {
    await using line = await startLineUnderTest(stateDir, ["--bases", bases, "--base", base, "--base", "twin"]);
    expect(await modelsOf(line)).toEqual(expect.arrayContaining([base, "twin"]));
    expect(await loraline(line, ["adapters", "add", foreign])).toMatchObject({ code: 2, err: expect.stringContaining(`${base}, twin`) });
    expect(await loraline(line, ["adapters", "add", foreign, "--base", "twin", "--name", "pirate"])).toMatchObject({ code: 0 });
    before = { answer: await ask(line), digest: await digestOf(line) };
    expect(before.answer).toMatch(/Arr, matey/);
    const status = JSON.parse((await loraline(undefined, ["status", "--state", stateDir, "--json"])).out) as { bases: { base: string }[] };
    expect(status.bases.map((each) => each.base)).toEqual([base, "twin"]);
    expect(await loraline(undefined, ["backup", backup, "--state", stateDir])).toMatchObject({
      code: 1,
      err: expect.stringContaining("loraline stop"),
    });
    expect(await loraline(undefined, ["stop", "--state", stateDir])).toMatchObject({ code: 0, out: expect.stringContaining("stopped") });
  }
  expect(await loraline(undefined, ["backup", backup, "--state", stateDir])).toMatchObject({ code: 0 });
  await rm(stateDir, { recursive: true });
  expect(await loraline(undefined, ["restore", backup, "--state", stateDir])).toMatchObject({ code: 0 });

  await using line = await startLineUnderTest(stateDir, ["--bases", bases, "--base", "twin"]);
  expect({ answer: await ask(line), digest: await digestOf(line) }).toEqual(before);
  expect(await modelsOf(line), "a base that is not served is not offered").not.toContain(base);
});
