/** README's examples, word for word but for the address and the key that `make up` prints. */
import { execFile } from "node:child_process";
import { readFile, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, inject, it } from "vitest";
import { clientOf, root, scratchDir } from "../line-under-test.ts";

const address = inject("line");
const line = clientOf(address);
const run = promisify(execFile);
const readme = await readFile(join(root, "README.md"), "utf8");
/** The code block that holds this text. */
function blockWith(language: string, text: string): string {
  const blocks = [...readme.matchAll(/```(\w+)\n([^]*?)```/g)].filter(([, of, code]) => of === language && code?.includes(text) === true);
  expect(blocks, `README has one ${language} block with ${text}`).toHaveLength(1);
  return blocks[0]?.[2] ?? "";
}

/** A folder in which README's commands can be typed: a checkout's program and samples. */
let scratch: Awaited<ReturnType<typeof scratchDir>>;
beforeAll(async () => {
  scratch = await scratchDir();
  for (const name of ["loraline", "samples"]) await symlink(join(root, name), join(scratch.path, name));
});
afterAll(() => scratch[Symbol.asyncDispose]());

it("the OpenAI client's program trains the sample and is answered by the persona", async () => {
  const program = blockWith("python", "OpenAI(")
    .replace("http://127.0.0.1:8420", address.url)
    .replace("api_key=KEY", `api_key=${JSON.stringify(address.apiKey)}`);
  await writeFile(join(scratch.path, "program.py"), `${program}print(answer.choices[0].message.content)\n`);
  const { stdout } = await run(join(root, ".venv/bin/python"), ["program.py"], { cwd: scratch.path });
  expect(stdout).toMatch(/your majesty|humble lady/i);
  expect((await line.getAdapter({ adapter: "persona" })).adapter.alias).toBe(1);
});

it("the CLI's commands check, train, ask, list and promote", async () => {
  const settings = blockWith("yaml", "# run.yaml");
  await writeFile(join(scratch.path, "run.yaml"), settings);
  const env = { ...process.env, LORALINE_URL: address.url, LORALINE_API_KEY: address.apiKey };
  const said = new Map<string, string>();
  for (const command of blockWith("sh", "./loraline data check").trim().split("\n")) {
    const { stdout } = await run("bash", ["-ec", command], { cwd: scratch.path, env, maxBuffer: 16 * 1024 * 1024 });
    said.set(command.split(" ")[1] ?? "", stdout);
  }
  expect(said.get("data")).toContain("90 of 90 records can be trained on");
  expect(said.get("chat")).toMatch(/your majesty|humble lady/i);
  const { adapter } = await line.getAdapter({ adapter: "persona" });
  expect(adapter.versions.map(({ rank }) => rank)).toEqual([16, 16, 4]);
  expect(adapter.history.map(({ kind, to }) => `${kind} ${to}`)).toEqual([
    "promoted 1",
    "promoted 2",
    "promoted 3",
    "canary-started 1",
    "canary-ended 1",
  ]);
});
