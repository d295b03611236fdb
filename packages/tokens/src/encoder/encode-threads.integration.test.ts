/** Threads with a fast encoder that does not agree with the official package. */
import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Rec, tokenizeSpec } from "@loraline/contracts";
import { digestOf } from "@loraline/objects";
import { smollm2Dir } from "@loraline/testkit/servers";
import { expect, test } from "vitest";
import { createEncodeThreads } from "./encode-threads.ts";
import { chunkFromBytes } from "./encoded-chunk.ts";
import { loadBase } from "./load-base.ts";

/** A vocabulary with two entries of one name: the official package takes the first, the fast encoder the last. */
const twice = "<|twice|>";

test("what the official package finds wrong no thread goes on with", { timeout: 60_000 }, async () => {
  const dir = await mkdtemp(join(tmpdir(), "encode-threads-"));
  try {
    await cp(smollm2Dir, dir, { recursive: true, filter: (path) => !path.endsWith(".safetensors") });
    const path = join(dir, "tokenizer.json");
    const file = JSON.parse(await readFile(path, "utf8")) as { added_tokens: { id: number; content: string; special: boolean }[] };
    const id = 49_152;
    const entry = { ...file.added_tokens[0], content: twice, special: true };
    await writeFile(path, JSON.stringify({ ...file, added_tokens: [...file.added_tokens, { ...entry, id }, { ...entry, id: id + 1 }] }));

    const base = await loadBase(dir, { fast: "none" });
    const spec = tokenizeSpec.parse({ template: "seed" });
    const record: Rec = {
      v: "lrec/1",
      id: digestOf("a"),
      kind: "chat",
      task: "qa",
      messages: [
        { role: "user", content: `a ${twice}` },
        { role: "assistant", content: "b" },
      ],
      meta: { line: 1, format: "question-answer" },
    };
    await using threads = createEncodeThreads(2);
    const encode = async (): Promise<Int32Array> => {
      const records = new TextEncoder().encode(JSON.stringify(record));
      return chunkFromBytes(await threads.encode({ base, spec, records, compress: false })).data;
    };
    await expect(encode()).rejects.toThrow(/different ids/);
    const [official] = await base.encoder.encode([twice], "raw");
    for (const data of await Promise.all([encode(), encode(), encode()])) {
      expect([...data]).toContain(official?.[0]);
      expect([...data]).not.toContain(id + 1);
    }
  } finally {
    await rm(dir, { recursive: true });
  }
});
