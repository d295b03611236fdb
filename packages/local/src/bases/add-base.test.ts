import { mkdir, mkdtempDisposable, readdir, readFile, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import { readBaseRef, readDerivedFrom } from "@loraline/models/base-ref";
import { test as base, expect } from "vitest";
import { addBase } from "./add-base.ts";
import { listBases } from "./list-bases.ts";

const test = base.extend("dirs", async ({}, { onCleanup }) => {
  const dir = await mkdtempDisposable(join(tmpdir(), "loraline-bases-"));
  onCleanup(() => dir.remove());
  const source = join(dir.path, "My Model");
  await mkdir(join(source, "onnx"), { recursive: true });
  const files = {
    "config.json": JSON.stringify({ architectures: ["LlamaForCausalLM"], max_position_embeddings: 512 }),
    "tokenizer.json": "{}",
    "model.safetensors": "weights",
    "pytorch_model.bin": "a pickle",
    ".gitattributes": "",
    "onnx/model.onnx": "",
  };
  for (const [name, text] of Object.entries(files)) await writeFile(join(source, name), text);
  return { source, basesDir: join(dir.path, "bases") };
});

const add = ({ source, basesDir }: { source: string; basesDir: string }, name?: string, python = "false") =>
  addBase({ source, name, basesDir, python, env: {}, signal: new AbortController().signal, progress: new PassThrough() });

test("a folder becomes a base, without pickles and what belongs to other programs", async ({ dirs }) => {
  expect(await add(dirs, "small")).toMatchObject({ name: "small", architecture: "LlamaForCausalLM", context: 512, hub: null });
  expect(await readdir(join(dirs.basesDir, "small"))).toEqual(["base.json", "config.json", "model.safetensors", "tokenizer.json"]);
  const written = JSON.parse(await readFile(join(dirs.basesDir, "small/base.json"), "utf8")) as { digest: string };
  expect(await readBaseRef(join(dirs.basesDir, "small"))).toEqual({ name: "small", revision: "unknown", digest: written.digest });
  expect((await listBases(dirs.basesDir)).map(({ name }) => name)).toEqual(["small"]);

  // The same files under another name are the same base, and keep what they are called.
  const source = join(dirs.basesDir, "small");
  await writeFile(
    join(source, "base.json"),
    JSON.stringify({ name: "small", revision: "v7", digest: written.digest, origin: { hub: "org/x" } }),
  );
  await add({ ...dirs, source }, "twin");
  expect(await readBaseRef(join(dirs.basesDir, "twin"))).toEqual({ name: "twin", revision: "v7", digest: written.digest });
  expect((await listBases(dirs.basesDir)).map(({ name, hub }) => [name, hub])).toEqual([
    ["small", "org/x"],
    ["twin", "org/x"],
  ]);
});

const safetensors = (norm: number, name = "model.norm.weight") => {
  const header = Buffer.from(JSON.stringify({ [name]: { dtype: "F32", shape: [1], data_offsets: [0, 4] } }));
  const prefix = Buffer.alloc(8);
  prefix.writeBigUInt64LE(BigInt(header.length));
  return Buffer.concat([prefix, header, Buffer.from(Float32Array.of(norm).buffer)]);
};

test("copies are compared whichever transformers wrote them, and what cannot be compared is no copy", async ({ dirs }) => {
  const architectures = ["Qwen2_5_VLForConditionalGeneration"];
  const write = async (config: object, tensor: string) => {
    await writeFile(join(dirs.source, "config.json"), JSON.stringify({ architectures, ...config }));
    await writeFile(join(dirs.source, "model.safetensors"), safetensors(1, tensor));
  };
  const derive = (name: string) =>
    addBase({
      ...dirs,
      name,
      derivedFrom: "small",
      python: "false",
      env: {},
      signal: new AbortController().signal,
      progress: new PassThrough(),
    });
  const norm = "layers.0.input_layernorm.weight";
  await write({ hidden_size: 8, rope_theta: 1e4, rms_norm_eps: 1e-5 }, `model.${norm}`);
  await add(dirs, "small");
  const newer = { hidden_size: 8, rope_parameters: { rope_type: "default", rope_theta: 1e4 } };
  await write({ text_config: newer }, `model.language_model.${norm}`);
  expect(await derive("copy")).toMatchObject({ derivedFrom: "small" });
  for (const [text, field] of [
    [{ ...newer, hidden_size: 16 }, "hidden_size"],
    [{ ...newer, rms_norm_eps: 1e-6 }, "rms_norm_eps"],
    [{ ...newer, rope_parameters: { rope_type: "yarn", factor: 4, rope_theta: 1e4 } }, "rope's type"],
  ] as const) {
    await write({ text_config: text }, `model.language_model.${norm}`);
    await expect(derive("other")).rejects.toMatchObject({ code: "TWIN_CONFIG_DIFFERS", message: expect.stringContaining(field) as string });
  }
  await write({ text_config: newer }, "model.language_model.layers.1.input_layernorm.weight");
  await expect(derive("other")).rejects.toMatchObject({
    code: "TWIN_WEIGHTS_DIFFER",
    message: expect.stringContaining("nothing can be compared") as string,
  });
});

test("a base is added as a copy of another one only if it is one", async ({ dirs }) => {
  const file = join(dirs.source, "model.safetensors");
  await writeFile(file, safetensors(1));
  const derive = (name: string, derivedFrom: string) =>
    addBase({ ...dirs, name, derivedFrom, python: "false", env: {}, signal: new AbortController().signal, progress: new PassThrough() });
  await expect(derive("copy", "small")).rejects.toMatchObject({ code: "BASE_MISSING" });
  await add(dirs, "small");
  expect(await derive("copy", "small")).toMatchObject({ name: "copy", derivedFrom: "small" });
  const { digest } = await readBaseRef(join(dirs.basesDir, "small"));
  expect(await readDerivedFrom(join(dirs.basesDir, "copy"))).toEqual({ name: "small", digest });
  await writeFile(file, safetensors(1.01));
  await expect(derive("other", "small")).rejects.toMatchObject({ code: "TWIN_WEIGHTS_DIFFER", param: "derivedFrom" });
  await writeFile(join(dirs.source, "tokenizer.json"), JSON.stringify({ model: { vocab: { a: 0 } } }));
  await expect(derive("other", "small")).rejects.toMatchObject({ code: "TWIN_TOKENIZER_DIFFERS" });
  expect((await listBases(dirs.basesDir)).map(({ name }) => name)).toEqual(["copy", "small"]);
});

test("what cannot be a base is refused, and leaves nothing behind", async ({ dirs }) => {
  await expect(add(dirs)).rejects.toMatchObject({ code: "BASE_NAME_INVALID", message: expect.stringContaining("--name") as string });
  await expect(add({ ...dirs, source: "nosuch" }, "x")).rejects.toMatchObject({ code: "BASE_NOT_FOUND" });
  await expect(add({ ...dirs, source: join(dirs.source, "onnx") }, "x")).rejects.toMatchObject({
    code: "BASE_INVALID",
    message: expect.stringContaining("config.json, tokenizer.json, *.safetensors are missing") as string,
  });
  await writeFile(join(dirs.source, "config.json"), JSON.stringify({ architectures: ["GPT2LMHeadModel"] }));
  await expect(add(dirs, "x")).rejects.toMatchObject({
    code: "ENGINE_IMPOSSIBLE",
    message: expect.stringContaining("without LoRA") as string,
  });
  // `false` ends without a word, as a Python without huggingface_hub would not.
  await expect(add({ ...dirs, source: "org/model" })).rejects.toMatchObject({
    code: "HUB_UNREACHABLE",
    message: expect.stringContaining("HF_ENDPOINT") as string,
  });
  expect(await readdir(dirs.basesDir)).toEqual([]);
  await mkdir(join(dirs.basesDir, "x"));
  await expect(add(dirs, "x")).rejects.toMatchObject({ code: "BASE_EXISTS" });
});

test("an origin that is not understood is refused where a base is added, and shown where one is there", async ({ dirs }) => {
  await writeFile(join(dirs.source, "base.json"), JSON.stringify({ origin: { hub: "no such form" } }));
  await expect(add(dirs, "small")).rejects.toMatchObject({
    code: "BASE_INVALID",
    message: expect.stringContaining("origin.hub is not understood") as string,
  });
  await writeFile(join(dirs.source, "base.json"), JSON.stringify({ origin: null }));
  await add(dirs, "small");
  await writeFile(join(dirs.basesDir, "small/base.json"), JSON.stringify({ origin: "the hub" }));
  const [base] = await listBases(dirs.basesDir);
  expect(base).toMatchObject({ hub: null, made: expect.stringMatching(/^not known: .+base\.json: origin is not understood/) as string });
});
