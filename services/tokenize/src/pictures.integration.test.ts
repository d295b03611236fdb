/** A run on rows with pictures, through the real worker: a base that sees, shards that name the pictures, probes that ask with one. */
import { cp, mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { buckets, type EngineRecord, type Rec } from "@loraline/contracts";
import { digestOf, getToFile, readPictureTable } from "@loraline/objects";
import { baseName, basesDir } from "@loraline/testkit";
import { tableFromIPC } from "apache-arrow";
import { expect } from "vitest";
import { createTokenizeService } from "./service.ts";
import { chatRecord, dataset, request, specOf, telemetry, test, tokenized } from "./service-under-test.ts";

const placeholders = ["<fake_token_around_image>", "<image>", "<global-img>"];

/** The test's base with the tokens and the processor of Idefics3, each picture as four tokens. */
async function makeSeer(dir: string): Promise<void> {
  const folder = join(dir, "seer");
  await mkdir(folder, { recursive: true });
  const from = join(basesDir, baseName);
  const file = JSON.parse(await readFile(join(from, "tokenizer.json"), "utf8")) as { added_tokens: object[]; model: { vocab: object } };
  const next = Object.keys(file.model.vocab).length;
  for (const [at, content] of placeholders.entries())
    file.added_tokens.push({ id: next + at, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true });
  await writeFile(join(folder, "tokenizer.json"), JSON.stringify(file));
  for (const name of ["tokenizer_config.json", "generation_config.json"]) await cp(join(from, name), join(folder, name));
  await writeFile(join(folder, "config.json"), JSON.stringify({ architectures: ["Idefics3ForConditionalGeneration"] }));
  await cp(join(from, "chat_template.jinja"), join(folder, "chat_template.jinja")).catch(() => undefined);
  const pictures = { do_image_splitting: false, size: { longest_edge: 64 }, max_image_size: { longest_edge: 64 } };
  await writeFile(
    join(folder, "preprocessor_config.json"),
    JSON.stringify({ image_processor_type: "Idefics3ImageProcessor", ...pictures }),
  );
  await writeFile(join(folder, "processor_config.json"), JSON.stringify({ processor_class: "Idefics3Processor", image_seq_len: 4 }));
}

const picture = (n: number) => ({
  digest: digestOf(`picture ${n}`),
  bytes: 100 + n,
  media_type: "image/png" as const,
  width: 10 + n,
  height: 20,
});
const shows = (line: number, ...which: number[]): Rec => {
  const record = chatRecord(line, `Which shape is ${line}?`, `A square of size ${line}.`);
  const [question, answer] = record.messages as [NonNullable<Rec["messages"]>[number], NonNullable<Rec["messages"]>[number]];
  const media = which.map((n) => {
    const { digest, ...facts } = picture(n);
    return { type: "image" as const, ref: digest, ...facts };
  });
  return { ...record, messages: [{ ...question, media: which.map((_, at) => at) }, answer], media };
};

test("a run on pictures names them in shards, manifest and probes; on a base that reads text it drops them", async ({
  bus,
  objects,
  tenant,
  dir,
}) => {
  const line = { bus, objects, tenant };
  await makeSeer(dir);
  const engines = await bus.bucket(buckets.engines);
  const known = (await engines.entries(">"))[0]?.value as EngineRecord;
  await engines.put("seer", { ...known, engine: "seer", base: { ...known.base, name: "seer" } });
  const records = Array.from({ length: 40 }, (_, n) =>
    n % 4 === 3 ? chatRecord(n + 1, `Question ${n}?`, `Answer ${n}.`) : shows(n + 1, n % 10, ...(n % 5 === 0 ? [n % 3] : [])),
  );
  const id = await dataset(line, records);
  {
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir: dir });
    expect(service).toBeDefined();
    const run = await request(line, { ...specOf(id), base: "seer", tokenize: { packing: true } });
    const { manifest } = await tokenized(line, run);
    expect(manifest.totals).toMatchObject({ sequences: 36, evalSequences: 4, dropped: 0 });
    const entries = await Array.fromAsync(readPictureTable(objects, tenant, manifest.pictures?.table as never));
    expect(entries).toHaveLength(10);
    expect(entries).toEqual(expect.arrayContaining(Array.from({ length: 10 }, (_, n) => picture(n))));
    expect(manifest.pictures).toMatchObject({ count: 10, bytes: 1045 });

    const image = JSON.parse(await readFile(join(dir, "seer/tokenizer.json"), "utf8")) as {
      added_tokens: { id: number; content: string }[];
    };
    const placeholder = image.added_tokens.find(({ content }) => content === "<image>")?.id;
    let sequences = 0;
    for (const [at, shard] of [...manifest.train, ...manifest.eval].entries()) {
      await getToFile(objects, tenant, shard.blob, join(dir, `${at}.arrow`));
      for (const row of tableFromIPC(await readFile(join(dir, `${at}.arrow`)))) {
        const list = <T>(name: string): T[] => Array.from(row[name] as ArrayLike<T>);
        const [ids, labels, counts, named] = [
          list<number>("input_ids"),
          list<number>("labels"),
          list<number>("picture_counts"),
          list<string>("pictures"),
        ];
        sequences += counts.length;
        expect(list("seq_lengths")).toHaveLength(counts.length);
        expect(named).toHaveLength(counts.reduce((sum, one) => sum + one, 0));
        expect(ids.filter((one) => one === placeholder)).toHaveLength(4 * named.length);
        expect(ids.every((one, index) => one !== placeholder || labels[index] === -100)).toBe(true);
        for (const digest of named) expect(entries.map((entry) => entry.digest)).toContain(digest);
      }
    }
    expect(sequences).toBe(40);

    const seen = manifest.probes.filter(({ pictures }) => pictures !== undefined);
    expect(seen).toHaveLength(2);
    for (const { input_ids, pictures = [], messages = [] } of seen) {
      expect(input_ids.filter((one) => one === placeholder)).toHaveLength(4 * pictures.length);
      expect(messages.flatMap(({ content }) => content.flatMap((part) => (part.type === "image" ? [part.digest] : [])))).toEqual(pictures);
      expect(messages.at(-1)).toMatchObject({
        role: "user",
        content: expect.arrayContaining([{ type: "text", text: expect.stringMatching(/^Which shape/) as string }]) as object,
      });
    }
    expect((await tokenized(line, await request(line, { ...specOf(id), base: "seer", tokenize: { packing: true } }))).data.cacheHit).toBe(
      true,
    );
  }
  await using service = await createTokenizeService({ bus, objects, telemetry, basesDir });
  expect(service).toBeDefined();
  const { manifest } = await tokenized(line, await request(line, { ...specOf(id), min_records: 1 }));
  expect(manifest).toMatchObject({ totals: { dropped: 30 }, reasons: { BASE_CANNOT_SEE: 30 } });
  expect(manifest.pictures).toBeUndefined();
});
