/** Pictures become the tokens that transformers' own processor gives them, whatever their size. */
import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Message, pictureMark, type Rec, tokenizeSpec } from "@loraline/contracts";
import { digestOf } from "@loraline/objects";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { assistant, chat, makeBase, root, system, user } from "../tokenize-under-test.ts";
import { createRecordEncoder } from "../encoder/encode-records.ts";
import { ignored } from "../encoder/encode-pieces.ts";
import { type Base, loadBase } from "../encoder/load-base.ts";

const dir = mkdtempSync(join(tmpdir(), "loraline-vision-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

/** SmolVLM's own. */
const smolVlm =
  "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}";
const tiles = Array.from({ length: 6 }, (_, row) => Array.from({ length: 6 }, (__, column) => `<row_${row + 1}_col_${column + 1}>`)).flat();
const tokens = ["<fake_token_around_image>", "<image>", "<global-img>", ...tiles, "<end_of_utterance>"];

const processors = {
  whole: { do_image_splitting: false, size: { longest_edge: 64 }, max_image_size: { longest_edge: 64 } },
  split: { do_image_splitting: true, size: { longest_edge: 4 * 364 }, max_image_size: { longest_edge: 364 } },
  small: { do_image_splitting: true, size: { longest_edge: 128 }, max_image_size: { longest_edge: 64 } },
  // Ten rows: more than there are tokens for.
  fine: { do_image_splitting: true, size: { longest_edge: 630 }, max_image_size: { longest_edge: 64 } },
  kept: { do_image_splitting: true, do_resize: false, size: { longest_edge: 128 }, max_image_size: { longest_edge: 100 } },
};
/** Qwen2-VL's own, without its videos; Qwen2.5-VL's is the same, and Qwen3-VL's has no prompt of its own. */
const qwenVl =
  "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
const qwenTokens = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"];
const qwen = { image_processor_type: "Qwen2VLImageProcessor", patch_size: 14, temporal_patch_size: 2, merge_size: 2 };
/** As their bases have them, and smaller ones. */
const grids = {
  qwen2: { ...qwen, processor_class: "Qwen2VLProcessor", min_pixels: 3136, max_pixels: 12_845_056 },
  qwen25: { ...qwen, processor_class: "Qwen2_5_VLProcessor", size: { shortest_edge: 3136, longest_edge: 50_176 } },
  qwen3: { ...qwen, processor_class: "Qwen3VLProcessor", patch_size: 16, size: { longest_edge: 16_777_216, shortest_edge: 65_536 } },
  defaults: { image_processor_type: "Qwen2VLImageProcessorFast", processor_class: "Qwen2_5_VLProcessor" },
};
/** As InternVL's bases write them. Its picture's token is one of three, and its processor takes their names from the tokenizer. */
const internVl =
  "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
const internNames = { context_image_token: "<IMG_CONTEXT>", start_image_token: "<img>", end_image_token: "</img>", video_token: "<video>" };
const intern = { image_processor_type: "GotOcr2ImageProcessorFast", processor_class: "InternVLProcessor", crop_to_patches: false };
/** As InternVL3's bases have it, and smaller ones. */
const canvases = {
  internvl3: { ...intern, min_patches: 1, max_patches: 12, size: { width: 448, height: 448 } },
  few: { ...intern, crop_to_patches: true, min_patches: 2, max_patches: 5, size: { width: 32, height: 64 } },
  one: { ...intern, max_patches: 1, size: { width: 32, height: 32 } },
};
/** As LLaVA 1.5's bases write them, a message's pictures first, but with the end of an answer, which they leave out. */
const llava =
  "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{% if message['role'] == 'assistant' %}{% generation %}{{ part['text'] + '</s>' }}{% endgeneration %}{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}";
const clip = { image_processor_type: "CLIPImageProcessor", processor_class: "LlavaProcessor" };
const squares = {
  llava15: [
    { ...clip, size: { shortest_edge: 336 }, crop_size: { width: 336, height: 336 }, do_center_crop: true },
    { patch_size: 14, num_additional_image_tokens: 1, vision_feature_select_strategy: "default" },
  ],
  full: [
    { ...clip, size: { shortest_edge: 28 }, crop_size: 28 },
    { patch_size: 14, num_additional_image_tokens: 1, vision_feature_select_strategy: "full" },
  ],
  uncut: [{ ...clip, do_center_crop: false, size: { width: 60, height: 32 } }, { patch_size: 16 }],
} as const;
/** As Mistral Small 3.1's and Ministral 3's bases write them. */
const mistral =
  "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ '[SYSTEM_PROMPT]' + (message['content'] if message['content'] is string else message['content'][0]['text']) + '[/SYSTEM_PROMPT]' }}{% elif message['role'] == 'user' %}{{ '[INST]' }}{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% elif part['type'] == 'image' %}{{ '[IMG]' }}{% endif %}{% endfor %}{% endif %}{{ '[/INST]' }}{% else %}{{ (message['content'] if message['content'] is string else message['content'][0]['text']) + '</s>' }}{% endif %}{% endfor %}";
const mistralTokens = ["[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<pad>"];
const pixtral = { image_processor_type: "PixtralImageProcessorFast", processor_class: "PixtralProcessor" };
const inRows = {
  mistral31: [
    { ...pixtral, patch_size: { height: 14, width: 14 }, size: { longest_edge: 1540 } },
    { patch_size: 14, spatial_merge_size: 2 },
  ],
  smaller: [{ ...pixtral, patch_size: 16, size: { longest_edge: 300 } }, { patch_size: 16 }],
} as const;
const bases = new Map<string, Base>();
beforeAll(async () => {
  for (const [name, image] of Object.entries(processors)) {
    const special = { eos: "<end_of_utterance>", pad: "<|im_end|>" };
    const folder = await makeBase(join(dir, name), { template: smolVlm, special, tokens, stops: ["<end_of_utterance>"] });
    const names = { image_processor_type: "Idefics3ImageProcessor", processor_class: "Idefics3Processor" };
    writeFileSync(join(folder, "preprocessor_config.json"), JSON.stringify({ ...names, ...image }));
    writeFileSync(join(folder, "processor_config.json"), JSON.stringify({ processor_class: "Idefics3Processor", image_seq_len: 4 }));
    bases.set(name, await loadBase(folder));
  }
  for (const [name, image] of Object.entries(grids)) {
    const special = { eos: "<|im_end|>", pad: "<|im_end|>" };
    const folder = await makeBase(join(dir, name), { template: qwenVl, special, tokens: qwenTokens, stops: ["<|im_end|>"] });
    writeFileSync(join(folder, "preprocessor_config.json"), JSON.stringify(image));
    const wrapper = image.processor_class.replace("Processor", "");
    const config = {
      architectures: [`${wrapper}ForConditionalGeneration`],
      model_type: wrapper.replace("VL", "_vl").replace("__", "_").toLowerCase(),
    };
    writeFileSync(join(folder, "config.json"), JSON.stringify(config));
    bases.set(name, await loadBase(folder));
  }
  for (const [name, image] of Object.entries(canvases)) {
    const special = { eos: "<|im_end|>", pad: "<|im_end|>" };
    const folder = await makeBase(join(dir, name), {
      template: internVl,
      special,
      tokens: Object.values(internNames),
      stops: ["<|im_end|>"],
    });
    addTo(join(folder, "tokenizer_config.json"), { extra_special_tokens: internNames });
    writeFileSync(join(folder, "preprocessor_config.json"), JSON.stringify(image));
    writeFileSync(join(folder, "processor_config.json"), JSON.stringify({ processor_class: "InternVLProcessor", image_seq_length: 4 }));
    const config = { architectures: ["InternVLForConditionalGeneration"], model_type: "internvl" };
    writeFileSync(join(folder, "config.json"), JSON.stringify(config));
    bases.set(name, await loadBase(folder));
  }
  for (const [name, [image, processor]] of Object.entries(squares)) {
    const special = { eos: "</s>", bos: "<s>", unk: "<unk>", pad: "<pad>" };
    const tokens = ["<image>", "<pad>"];
    const folder = await makeBase(join(dir, name), { template: llava, special, tokens, stops: ["</s>"], tokenizer: "llama2" });
    writeFileSync(join(folder, "preprocessor_config.json"), JSON.stringify(image));
    writeFileSync(join(folder, "processor_config.json"), JSON.stringify({ processor_class: "LlavaProcessor", ...processor }));
    const vision_config = { model_type: "clip_vision_model" };
    const config = { architectures: ["LlavaForConditionalGeneration"], model_type: "llava", vision_config };
    writeFileSync(join(folder, "config.json"), JSON.stringify(config));
    bases.set(name, await loadBase(folder));
  }
  for (const [name, [image, processor]] of Object.entries(inRows)) {
    const special = { eos: "</s>", bos: "<s>", unk: "<unk>", pad: "<pad>" };
    const folder = await makeBase(join(dir, name), {
      template: mistral,
      special,
      tokens: mistralTokens,
      stops: ["</s>"],
      tokenizer: "llama2",
    });
    writeFileSync(join(folder, "preprocessor_config.json"), JSON.stringify(image));
    writeFileSync(join(folder, "processor_config.json"), JSON.stringify({ processor_class: "PixtralProcessor", ...processor }));
    const config = { architectures: ["Mistral3ForConditionalGeneration"], model_type: "mistral3" };
    writeFileSync(join(folder, "config.json"), JSON.stringify(config));
    bases.set(name, await loadBase(folder));
  }
});

const addTo = (file: string, fields: object): void =>
  writeFileSync(file, JSON.stringify({ ...(JSON.parse(readFileSync(file, "utf8")) as object), ...fields }));

type Size = readonly [width: number, height: number];
const withPictures = (messages: readonly Message[], sizes: readonly Size[]): Rec =>
  chat(messages, {
    media: sizes.map(([width, height], at) => ({
      type: "image",
      ref: digestOf(`${at} ${width} ${height}`),
      bytes: 1000,
      media_type: "image/png",
      width,
      height,
    })),
  });
const shows = (content: string, ...media: number[]): Message => ({ ...user(content), media });

/** Parts as OpenAI's clients write them. */
const asParts = ({ role, content, media = [] }: Message): object => {
  const texts = content.split(pictureMark);
  const front = media.slice(0, media.length - (texts.length - 1)).map(() => ({ type: "image" }));
  const rest = texts.flatMap((text, at) => [
    ...(text === "" ? [] : [{ type: "text", text }]),
    ...(at < texts.length - 1 ? [{ type: "image" }] : []),
  ]);
  return { role, content: [...front, ...rest] };
};

function askTransformers(asked: readonly { record: Rec; base: string }[]): number[][] {
  const input = asked.map(({ record, base }) =>
    JSON.stringify({
      dir: join(dir, base),
      messages: record.messages?.map(asParts),
      pictures: record.media?.map(({ width, height }) => [width, height]),
    }),
  );
  const script = join(import.meta.dirname, "../../testdata/python_pictures.py");
  const { stdout, stderr, status } = spawnSync(join(root, ".venv/bin/python"), [script], {
    input: input.join("\n"),
    encoding: "utf8",
    maxBuffer: 1e9,
  });
  expect(status, stderr).toBe(0);
  return stdout
    .trim()
    .split("\n")
    .map((line) => (JSON.parse(line) as { ids: number[] }).ids);
}

const spec = tokenizeSpec.parse({ max_length: 100_000 });
const encode = async (base: string, record: Rec, more: object = {}) =>
  (await createRecordEncoder(bases.get(base) as Base, { ...spec, ...more }).encode([record]))[0];

describe("ids equal those of transformers", () => {
  const sizes: Size[] = [
    [1, 1],
    [7, 300],
    [64, 64],
    [65, 64],
    [101, 100],
    [129, 365],
    [300, 7],
    [364, 728],
    [365, 364],
    [640, 480],
    [1000, 333],
    [2000, 20],
    // Halves of a token's side, which Python rounds to even numbers.
    [70, 98],
    [112, 400],
  ];
  const shapes = sizes.map((size): [Message[], Size[]] => [[shows("What is it?", 0), assistant("A square.")], [size]]);
  const conversations: [Message[], Size[]][] = [
    [
      [shows(`Is ${pictureMark} like ${pictureMark}?`, 0, 1), assistant("Yes.")],
      [
        [10, 20],
        [400, 100],
      ],
    ],
    [
      [shows(`or ${pictureMark}`, 0, 1), assistant("Yes."), user("Sure?"), assistant("No.")],
      [
        [10, 20],
        [10, 20],
      ],
    ],
    [
      [system("Be brief."), shows("Say.", 0), assistant("A."), shows(`${pictureMark}\n\n`, 1), assistant("B.")],
      [
        [64, 64],
        [365, 10],
      ],
    ],
    [[user("No picture."), assistant("No.")], []],
  ];

  it("for pictures of every shape, several, between words and in several turns, on every kind of processor", async () => {
    const asked = [...shapes, ...conversations].flatMap(([messages, of]) =>
      [...bases.keys()].map((base) => ({ base, record: withPictures(messages, of) })),
    );
    // One process: it takes longer to start than to answer.
    const theirs = askTransformers(asked);
    expect(theirs).toHaveLength(asked.length);
    for (const [at, { base, record }] of asked.entries()) {
      const ours = [...((await encode(base, record))?.samples[0]?.ids ?? [])];
      expect(ours, `${base} ${JSON.stringify(record.media)}`).toEqual(theirs[at]);
    }
  }, 600_000);

  it("and a text that spells a placeholder does not become one", async () => {
    const placeholder = bases.get("whole")?.encoder.addedId("<image>");
    const spelled = await encode("whole", withPictures([shows("Is <image> a tag?", 0), assistant("<image> is.")], [[10, 10]]));
    expect([...(spelled?.samples[0]?.ids ?? [])].filter((id) => id === placeholder)).toHaveLength(4);
  });
});

describe("a record with pictures", () => {
  const record = withPictures([system("Be brief."), shows("What is it?", 0), assistant("A square.")], [[10, 20]]);

  it("trains the answer only, and says which pictures it shows and what a probe asks", async () => {
    const sample = (await encode("whole", record))?.samples[0];
    const base = bases.get("whole") as Base;
    const trained = [...(sample?.labels ?? [])].filter((label) => label !== ignored);
    expect(await base.encoder.decode(trained)).toBe(" A square.<end_of_utterance>");
    const digest = record.media?.[0]?.ref;
    expect(sample?.pictures).toEqual([{ digest, bytes: 1000, media_type: "image/png", width: 10, height: 20 }]);
    expect(sample?.question?.()).toEqual([
      { role: "system", content: [{ type: "text", text: "Be brief." }] },
      {
        role: "user",
        content: [
          { type: "image", digest },
          { type: "text", text: "What is it?" },
        ],
      },
    ]);
  });

  it("of a preference shows them on both sides; a judge, who reads texts, gets no such record", async () => {
    const { messages = [], media } = withPictures([shows("What is it?", 0)], [[60, 80]]);
    const preference: Rec = {
      ...withPictures([], []),
      kind: "preference",
      messages,
      chosen: [assistant("A square.")],
      rejected: [assistant("A circle, I think.")],
      media: media ?? [],
    };
    const base = bases.get("qwen2") as Base;
    const [pair] = await createRecordEncoder(base, spec, "best-pairs").encode([preference]);
    expect(
      pair?.samples.map(({ side, pictures, ids }) => [
        side,
        pictures?.length,
        ids.filter((id) => id === base.encoder.addedId("<|image_pad|>")).length,
      ]),
    ).toEqual([
      [1, 1, 6],
      [0, 1, 6],
    ]);
    expect(await createRecordEncoder(base, spec, "best-comparisons").encode([preference])).toMatchObject([
      { samples: [], dropped: { code: "KIND_NOT_TRAINED", message: expect.stringMatching(/a judge is shown none/) as string } },
    ]);
  });

  it("whose trained answer shows one is left out and told; an answer that is not trained may", async () => {
    const shown = (train: boolean) =>
      withPictures([user("Draw."), { ...assistant("A square."), media: [0], train }, user("And?"), assistant("No.")], [[10, 20]]);
    expect(await encode("qwen2", shown(true))).toMatchObject({ samples: [], dropped: { code: "PICTURE_IN_ANSWER" } });
    expect((await encode("qwen2", shown(false)))?.samples[0]?.pictures).toHaveLength(1);
  });

  it("that is too long with its pictures is left out and told, however much of it could be cut", async () => {
    const long = withPictures([user("Hello."), assistant("Hi."), shows("What is it?", 0), assistant("A square.")], [[1456, 1456]]);
    expect(await encode("split", long, { max_length: 60, too_long: "trim-prompt" })).toMatchObject({
      samples: [],
      dropped: { code: "TOO_LONG", message: expect.stringMatching(/^\d+ tokens, those of its picture included; .* Raise it\.$/) as string },
    });
  });

  it("that nobody fetched, or for a template that hides pictures, is left out and told", async () => {
    const unfetched = { ...record, media: [{ type: "image" as const, ref: "https://a.test/1.png" }] };
    expect(await encode("whole", unfetched)).toMatchObject({ dropped: { code: "PICTURE_NOT_FETCHED" } });
    const folder = join(dir, "whole");
    writeFileSync(join(folder, "chat_template.jinja"), smolVlm.replace("{{ '<image>' }}", ""));
    const hiding = await loadBase(folder);
    writeFileSync(join(folder, "chat_template.jinja"), smolVlm);
    const [hidden] = await createRecordEncoder(hiding, spec).encode([record]);
    expect(hidden?.dropped).toMatchObject({
      code: "TEMPLATE_HIDES_PICTURES",
      message: expect.stringMatching(/shows 0 of the record's 1 pictures/) as string,
    });
  });

  it("for a template that takes text has its pictures in front, each on a line, as vLLM puts them", async () => {
    const folder = join(dir, "whole");
    const plain =
      "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    writeFileSync(join(folder, "chat_template.jinja"), plain);
    writeFileSync(
      join(folder, "generation_config.json"),
      JSON.stringify({ eos_token_id: bases.get("whole")?.encoder.addedId("<|im_end|>") }),
    );
    const base = await loadBase(folder);
    const [encoded] = await createRecordEncoder(base, spec).encode([
      withPictures([shows(`a${pictureMark}b`, 0), assistant("c")], [[9, 9]]),
    ]);
    const text = await base.encoder.decode([...(encoded?.samples[0]?.ids ?? [])]);
    const shown = `<fake_token_around_image><global-img>${"<image>".repeat(4)}<fake_token_around_image>`;
    expect(text).toBe(`<|im_start|>user\n${shown}\na\nb<|im_end|>\n<|im_start|>assistant\nc<|im_end|>\n`);
  });
});
