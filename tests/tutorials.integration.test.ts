/** docs/tutorials.md: each code block as it stands, in the order of the page, on one line with simulated trainer and engine. */
import { execFile } from "node:child_process";
import { readFile, symlink } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { delimiter, join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, it } from "vitest";
import { clientOf, fileWith, root, scratchDir } from "./line-under-test.ts";
import { announceLineIn, bootstrapKey, type SimulatedLine, startSimulatedLine, tenant } from "./services-under-test.ts";

const run = promisify(execFile);
const owned = new AsyncDisposableStack();
const rows = "https://data.example.org/persona.jsonl";

interface Block {
  section: string;
  language: string;
  code: string;
}
/** The blocks of the page that are to be run, in order. */
const blocks: Block[] = [];
const page = await readFile(join(root, "docs/tutorials.md"), "utf8");
for (const section of page.split(/^## /m)) {
  for (const [, mark, language = "", code = ""] of section.matchAll(/(<!-- not run: .+ -->\n)?```(\w+)\n([^]*?)```/g))
    if (mark === undefined) blocks.push({ section: section.split("\n")[0] ?? "", language, code });
}

let line: SimulatedLine;
let folder: string;
let env: Record<string, string | undefined>;
let mirror: string;
beforeAll(async () => {
  const persona = await readFile(join(root, "samples/persona.jsonl"));
  const files = createServer((_, response) => void response.end(persona));
  await new Promise<void>((resolve) => files.listen(0, "127.0.0.1", resolve));
  owned.defer(() => void files.close());
  const host = `127.0.0.1:${(files.address() as AddressInfo).port}`;
  mirror = `http://${host}/persona.jsonl`;
  const dir = owned.use(await scratchDir()).path;
  line = owned.use(await startSimulatedLine({ dir, natsTenants: [tenant], env: { LORALINE_IMPORT_ALLOW: host } }));
  await announceLineIn(dir, line);
  // A checkout, but for what blocks write.
  folder = owned.use(await scratchDir()).path;
  for (const name of ["loraline", "samples", "examples", ".venv", ".cache"]) await symlink(join(root, name), join(folder, name));
  env = {
    ...process.env,
    PATH: [root, process.env["PATH"]].join(delimiter),
    LORALINE_STATE: dir,
    OPENAI_BASE_URL: `${line.gateways[0]?.url}/v1`,
    OPENAI_API_KEY: bootstrapKey,
  };
}, 300_000);
afterAll(() => owned.disposeAsync());

/** Runs a block as a reader does. Only the tenant's name and the address of the rows are of this line. */
async function play({ language, code }: Block): Promise<string> {
  const text = code.replaceAll("local/", `${tenant}/`).replaceAll(rows, mirror);
  const [, file] = /^# ([\w.-]+)\n/.exec(text) ?? [];
  if (language === "yaml" && file !== undefined) return fileWith(folder, file, text);
  const options = { cwd: folder, env, maxBuffer: 16 * 1024 ** 2 };
  if (language === "sh") return (await run("bash", ["-euc", text], options)).stdout;
  if (language === "python") return (await run(".venv/bin/python", ["-c", text], options)).stdout;
  throw new Error(`docs/tutorials.md: nobody knows how to run a block of ${language}; mark it with <!-- not run: why -->`);
}

it.each([
  ["Your first adapter", "persona", { versions: 2, alias: 1 }],
  ["From OpenAI", "palace", { versions: 1, alias: 1 }],
  ["From a PEFT script", "from-peft", { versions: 1, alias: 1 }],
  ["By messages", "messenger", { versions: 1, alias: 1 }],
])("%s: what stands there works as it stands", { timeout: 300_000 }, async (section, adapter, { versions, alias }) => {
  const mine = blocks.filter((block) => block.section === section);
  expect(mine.length).toBeGreaterThan(0);
  const said: string[] = [];
  for (const block of mine) said.push(await play(block));
  const client = clientOf({ url: line.gateways[0]?.url ?? "", apiKey: bootstrapKey });
  const { adapter: state } = await client.getAdapter({ adapter });
  expect({ versions: state.versions.length, alias: state.alias }, said.join("\n")).toEqual({ versions, alias });
});

it("every block belongs to a section that is tried", () => {
  expect([...new Set(blocks.map(({ section }) => section))]).toEqual([
    "Your first adapter",
    "From OpenAI",
    "From a PEFT script",
    "By messages",
  ]);
});
