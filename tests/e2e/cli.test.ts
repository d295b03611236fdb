/** The commands a person types, in the order a person would. */
import { beforeAll, afterAll, describe, expect, inject, it } from "vitest";
import { base, clientOf, fileWith, jsonLines, eventually, loraline, sampleRows, scratchDir } from "../line-under-test.ts";

const address = inject("line");
const line = clientOf(address);
let scratch: Awaited<ReturnType<typeof scratchDir>>;
let file: string;
let settings: string;

beforeAll(async () => {
  scratch = await scratchDir();
  const rows = (await sampleRows(20)).map(({ instruction, output }) => ({
    conversation: [
      { role: "user", content: instruction },
      { role: "assistant", content: output },
    ],
  }));
  file = await fileWith(scratch.path, "talk.jsonl", jsonLines(rows));
  settings = await fileWith(
    scratch.path,
    "run.yaml",
    "lora: { r: 4, target_modules: '.*(q|v)_proj' }\ntraining: { max_steps: 4, learning_rate: 2.0e-3 }\ngate: none\npromote: manual\n",
  );
});
afterAll(() => scratch[Symbol.asyncDispose]());

describe("loraline", () => {
  let runId: string;

  it("run: plain lines where there is no terminal, then the proof", async () => {
    const { code, out, err } = await loraline(address, ["run", file, "--base", base, "--name", "typed", "-f", settings]);
    expect({ code, err }).toMatchObject({ code: 0 });
    runId = /^run ([0-9A-Z]{26})$/m.exec(err)?.[1] ?? "";
    expect(err).toMatch(/training: step 4\/4 · loss \d/);
    expect(out).toMatch(/proof +\d+ prompts/);
    expect(out).toContain("local/typed@1");
    expect(out).toContain("loraline promote typed@1");
  });

  it("runs, show, adapters, trace: words and JSON", async () => {
    expect((await loraline(address, ["runs"])).out).toMatch(new RegExp(`${runId} +served +local/typed@1 +4/4`));
    expect((await loraline(address, ["show", runId.slice(-6)])).out).toContain(runId);
    const shown = JSON.parse((await loraline(address, ["show", `ftjob-${runId}`, "--json"])).out) as { run: { phase: string } };
    expect(shown.run.phase).toBe("served");
    expect((await loraline(address, ["adapters"])).out).toMatch(/local\/typed +1 +desired +proven/);
    const trace = (await loraline(address, ["trace", runId])).out;
    expect(trace).toMatch(/trainer .*█/);
    const { spans } = JSON.parse((await loraline(address, ["trace", runId, "--json"])).out) as { spans: unknown[] };
    expect(spans.length).toBeGreaterThan(8);
  });

  it("promote and rollback move the alias; chat follows it", async () => {
    const before = await loraline(address, ["chat", "local/typed", "Hello"]);
    expect(before.code, "not promoted yet").not.toBe(0);
    expect(await loraline(address, ["promote", "other/typed", "1"]), "another tenant's").toMatchObject({ code: 4 });
    const promoted = await loraline(address, ["promote", "local/typed", "1"]);
    expect(promoted).toMatchObject({ code: 0, out: expect.stringMatching(/local\/typed +1 \*/) });
    const said = await loraline(address, ["chat", "local/typed", "--max-tokens", "8"], "Who are you?");
    expect(said).toMatchObject({ code: 0, out: expect.stringMatching(/\S/) });

    const second = await loraline(address, ["run", file, "--base", base, "--name", "typed", "-f", settings, "--json"]);
    expect((JSON.parse(second.out) as { run: { served: unknown } }).run.served).toMatchObject({ version: 2, promoted: false });
    expect(await loraline(address, ["promote", "typed", "2"])).toMatchObject({ code: 0 });
    expect(await loraline(address, ["rollback", "typed"])).toMatchObject({ code: 0, out: expect.stringMatching(/ 1 \*/) });
    expect(await loraline(address, ["promote", "typed", "9"])).toMatchObject({ code: 1, err: expect.stringMatching(/no version 9/) });
    expect((await line.getAdapter({ adapter: "typed" })).adapter.alias).toBe(1);
  });

  it("a canary gets its share, and takes the alias or gives it back; the history tells who did what", async () => {
    const settings = ["--canary", "--steps", "40,80", "--interval", "1", "--min-requests", "4", "--max-latency-ratio", "1000"];
    expect(await loraline(address, ["promote", "typed@2", ...settings])).toMatchObject({
      code: 0,
      out: expect.stringMatching(/canary of version 2 beside 1.*step 1 of 2 \(40 %\)/),
    });
    const ask = async (user: string) => {
      const messages = [{ role: "user" as const, content: "Who are you?" }];
      return (await line.openai.chat.completions.create({ model: "local/typed", messages, user, max_tokens: 1 })).model;
    };
    const users = Array.from({ length: 20 }, (_, i) => `user-${i}`);
    const seen = new Map<string, string>();
    for (const user of users) seen.set(user, await ask(user));
    expect(new Set(seen.values())).toEqual(new Set(["local/typed@1", "local/typed@2"]));
    await eventually("the canary has the alias", 120_000, async () => {
      await Promise.all(users.map(ask));
      return (await line.getAdapter({ adapter: "typed" })).adapter.alias === 2 ? true : undefined;
    });
    expect(await loraline(address, ["promote", "typed@1", ...settings.slice(0, 3), "--interval", "600"])).toMatchObject({ code: 0 });
    expect(await loraline(address, ["rollback", "typed"])).toMatchObject({ code: 0, out: expect.stringMatching(/ 2 \*/) });
    const { out } = await loraline(address, ["adapters", "typed", "--history"]);
    const told = out.split("\n").filter((row) => row.includes("canary"));
    for (const [row, what] of [
      [0, /canary 2 began, 40 % .*canary requested/],
      [1, /canary 2 now 80 % .*step 1 of 2 \(40 %\) passed/],
      [2, /canary 2 promoted/],
      [3, /canary 1 began/],
      [4, /canary 1 rolled back .*rollback requested/],
    ] as const)
      expect(told[row]).toMatch(what);
  });

  it("cancel stops a run that trains", async () => {
    const long = await fileWith(scratch.path, "long.yaml", "training: { max_steps: 5000 }\n");
    const { out } = await loraline(address, ["run", file, "--base", base, "--name", "too-long", "-f", long, "--no-follow"]);
    const id = out.trim();
    expect(await loraline(address, ["cancel", id])).toMatchObject({ code: 0 });
    const followed = await loraline(address, ["show", id, "--follow"]);
    expect(followed).toMatchObject({ code: 1, out: expect.stringContaining("cancelled") });
  });

  it("exit codes: 2 for wrong usage, 4 for what is not there", async () => {
    expect(await loraline(address, ["frobnicate"])).toMatchObject({ code: 2 });
    expect(await loraline(address, ["run", file, "--base", base])).toMatchObject({ code: 2, err: expect.stringContaining("--name") });
    expect(await loraline(address, ["run", "nowhere.jsonl", "--base", base, "--name", "x"])).toMatchObject({
      code: 2,
      err: expect.stringContaining("nowhere.jsonl"),
    });
    expect(await loraline(address, ["show", "01ARZ3NDEKTSV4RRFFQ69G5FAV"])).toMatchObject({ code: 4 });
    expect(await loraline(address, ["dlq", "show", "99999"])).toMatchObject({ code: 4 });
    expect(await loraline(address, ["--help"])).toMatchObject({ code: 0, out: expect.stringContaining("Exit codes") });
  });
});
