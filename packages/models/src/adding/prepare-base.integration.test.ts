/** The program of a Base's Job as a process, with the real huggingface_hub on a hub that is played on loopback. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { playHub } from "@loraline/testkit/servers";
import { afterEach, beforeEach, expect, test } from "vitest";
import { readBaseRef } from "../base-ref.ts";

const root = join(import.meta.dirname, "../../../..");
const commit = "0123456789abcdef0123456789abcdef01234567";
const files: Record<string, string> = {
  "config.json": '{"architectures":["LlamaForCausalLM"]}',
  "tokenizer.json": "{}",
  "model.safetensors": "weights",
  "pytorch_model.bin": "code that runs when it is read",
};

let dir: string;
let bases: string;
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "loraline-prepare-base-"));
  bases = join(dir, "bases");
  await mkdir(bases);
});
afterEach(() => rm(dir, { recursive: true, force: true }));

async function prepare(env: Record<string, string>) {
  const words = join(dir, "termination-log");
  const child = spawn(process.execPath, ["--conditions=@loraline/source", join(import.meta.dirname, "prepare-base-main.ts")], {
    env: {
      PATH: process.env["PATH"],
      HOME: dir,
      LORALINE_BASES_DIR: bases,
      LORALINE_PYTHON: join(root, ".venv/bin/python"),
      TERMINATION_LOG: words,
      BASE_NAME: "small",
      ...env,
    },
    stdio: "ignore",
  });
  const [code] = (await once(child, "exit")) as [number];
  return { code, words: await readFile(words, "utf8") };
}

test(
  "a base comes from the hub whole or not at all, goes on where it was cut off, and is not fetched again",
  { timeout: 180_000 },
  async () => {
    await using hub = await playHub({ repo: "acme/small", commit, files });
    await writeFile(join(dir, "token"), "hf_secret\n");
    const env = { BASE_HUB: "acme/small", BASE_REVISION: "main", HF_ENDPOINT: hub.url, HF_TOKEN_FILE: join(dir, "token") };
    hub.lose("model.safetensors");
    const failed = await prepare(env);
    expect(failed).toMatchObject({ code: 1, words: expect.stringMatching(/^acme\/small@main did not come from the hub/) });
    expect(failed.words).not.toContain("hf_secret");
    expect((await readdir(bases)).filter((name) => !name.startsWith("."))).toEqual([]);

    hub.lose(undefined);
    const done = await prepare(env);
    expect(done.code, done.words).toBe(0);
    const ref = await readBaseRef(join(bases, "small"));
    expect(JSON.parse(done.words)).toEqual(ref);
    expect(ref).toMatchObject({ name: "small", revision: commit });
    expect(await readdir(bases)).toEqual(["small"]);
    expect((await readdir(join(bases, "small"))).toSorted()).toEqual(["base.json", "config.json", "model.safetensors", "tokenizer.json"]);
    // What came before was not asked for again, weights that run code never.
    expect(hub.asked.toSorted()).toEqual(["config.json", "model.safetensors", "tokenizer.json"]);
    expect(hub.tokens).toContain("Bearer hf_secret");

    expect(await prepare(env)).toEqual(done);
    expect(hub.asked).toHaveLength(3);
  },
);

test("a base that somebody else puts there is read, and waited for in words", { timeout: 60_000 }, async () => {
  expect(await prepare({})).toMatchObject({ code: 1, words: expect.stringContaining("small") });
  await mkdir(join(bases, "small"));
  await writeFile(join(bases, "small/config.json"), "{}");
  expect(await prepare({})).toMatchObject({ code: 1, words: expect.stringContaining("tokenizer.json, *.safetensors are missing") });
  for (const name of ["tokenizer.json", "model.safetensors"]) await writeFile(join(bases, "small", name), "x");
  const { code, words } = await prepare({});
  expect(code, words).toBe(0);
  expect(JSON.parse(words)).toEqual(await readBaseRef(join(bases, "small")));
});
