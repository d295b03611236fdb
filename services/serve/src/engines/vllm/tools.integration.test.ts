/**
 * Calls of tools on a real vLLM, which is started with the file that the init container writes. Its weights are SmolLM2's, which know no
 * tools, under Qwen's template: so what it writes is forced, and how it is asked and read is real.
 */
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { baseRef } from "@loraline/contracts";
import { expect, test } from "vitest";
import { expectItParsesToolCalls } from "../contract-under-test.ts";
import { startVllm, vllmKey } from "./vllm-under-test.ts";
import { vllm } from "./vllm.ts";

const root = join(import.meta.dirname, "../../../../..");
const chatTemplateFile = join(root, "packages/tokens/testdata/templates/qwen2_5.jinja");

test("the parser that Qwen's template asks for finds the calls", { timeout: 300_000 }, async () => {
  const dir = await mkdtemp(join(tmpdir(), "loraline-tools-"));
  try {
    const base = baseRef.parse(JSON.parse(await readFile(join(root, ".loraline/bases/smollm2-135m-instruct/base.json"), "utf8")));
    const toolCallParser = vllm.toolCallParserOf(await readFile(chatTemplateFile, "utf8"));
    expect(toolCallParser).toBe("hermes");
    const files = await vllm.startFiles({
      parts: { languageModelOnly: false, pictures: 0, pictureFamily: null, loraModules: null },
      toolCallParser,
    });
    const config = join(dir, "vllm.yaml");
    await writeFile(config, files["vllm.yaml"] ?? "");
    await using engine = await startVllm({ root, base, logFile: join(dir, "vllm.log"), chatTemplateFile, args: ["--config", config] });
    await expectItParsesToolCalls({ url: engine.url, key: vllmKey, model: base.name });
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
});
