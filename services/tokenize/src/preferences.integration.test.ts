/** Runs that learn from preferences: what becomes of pairs, ranked lists and labelled answers, on the real base. */
import { join } from "node:path";
import type { Message, Rec } from "@loraline/contracts";
import { digestOf } from "@loraline/objects";
import { baseName, basesDir } from "@loraline/testkit";
import { loadBase } from "@loraline/tokens";
import { describe, expect } from "vitest";
import { chatRecord, dataset, rejected, request, rowsOf, someRecords, specOf, telemetry, test, tokenized } from "./service-under-test.ts";
import { createTokenizeService } from "./service.ts";

const user = (content: string): Message => ({ role: "user", content });
const assistant = (content: string): Message => ({ role: "assistant", content });
const recordOf = (line: number, body: Partial<Rec>): Rec => ({
  v: "lrec/1",
  id: digestOf(JSON.stringify(body)),
  kind: "preference",
  task: "preference",
  meta: { line, format: "preference" },
  ...body,
});
const pair = (line: number, question: string, chosen: string, rejected: string): Rec =>
  recordOf(line, { messages: [user(question)], chosen: [assistant(chosen)], rejected: [assistant(rejected)] });
const somePairs = (count: number, from = 1): Rec[] =>
  Array.from({ length: count }, (_, index) =>
    pair(
      from + index,
      `Question number ${from + index}?`,
      `Sure: ${from + index}.`,
      `Sure, and at length: ${"well, ".repeat(1 + (index % 7))}no.`,
    ),
  );
const ranked = (line: number, question: string, scores: readonly (number | undefined)[]): Rec =>
  recordOf(line, {
    kind: "ranked",
    messages: [user(question)],
    candidates: scores.map((score, index) => ({ content: `Answer ${index}.`, ...(score !== undefined && { score }) })),
  });
const labelled = (line: number, question: string, answer: string, label: boolean): Rec =>
  recordOf(line, { kind: "unpaired", messages: [user(question), assistant(answer)], label });

type Row = Awaited<ReturnType<typeof rowsOf>>[number];
/** The sequences of a row, each with its side, its prompt's ids and its trained ids. */
function sequencesOf({ ids, labels, lengths, sides = [] }: Row) {
  let at = 0;
  return lengths.map((length, index) => {
    const [own, its] = [ids.slice(at, at + length), labels.slice(at, at + length)];
    at += length;
    const answer = its.findIndex((label) => label !== -100);
    return { side: sides[index], ids: own, prompt: own.slice(0, answer).join(), trained: its.filter((label) => label !== -100) };
  });
}

describe("pairs", () => {
  test("stand side by side in one row, chosen first, with only the answers trained", async ({ bus, objects, tenant, dir }) => {
    const line = { bus, objects, tenant };
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir });
    expect(service).toBeDefined();
    const id = await dataset(line, somePairs(40));
    const { data, manifest } = await tokenized(line, await request(line, specOf(id, { method: { type: "dpo" } })));
    expect(data.totals).toMatchObject({ sequences: 72, evalSequences: 8, dropped: 0 });
    const rows = [...(await rowsOf(line, manifest.train, dir)), ...(await rowsOf(line, manifest.eval, dir))];
    expect(rows).toHaveLength(40);
    for (const row of rows) {
      expect(row.sides).toEqual([1, 0]);
      const [chosen, other] = sequencesOf(row);
      expect(chosen?.prompt).toBe(other?.prompt);
      expect(chosen?.prompt.split(",").slice(-4)).toEqual(["1", "520", "9531", "198"]); // <|im_start|>assistant\n
      // "Sure" begins both, and both end with the token that ends a turn.
      expect(chosen?.trained[0]).toBe(other?.trained[0]);
      expect([chosen?.trained.at(-1), other?.trained.at(-1)]).toEqual([2, 2]);
      expect(chosen?.trained).not.toEqual(other?.trained);
    }
    // A prompt of its own for each probe, up to where the sides part: behind "Sure", where they still agree.
    const trained = rows.slice(0, 36).map(sequencesOf);
    const own = manifest.probes.filter(({ name }) => name.startsWith("line-"));
    expect(own).toHaveLength(4);
    for (const { input_ids: probe } of own) {
      const of = trained.find((sides) => sides.every(({ ids }) => ids.slice(0, probe.length).join() === probe.join()));
      const [chosen, other] = of ?? [];
      expect(probe.length).toBeGreaterThan(chosen?.prompt.split(",").length ?? 0);
      expect(chosen?.ids[probe.length]).not.toBe(other?.ids[probe.length]);
    }
  });

  test("stay together in packed rows, which have room for two sides of the greatest length", async ({ bus, objects, tenant, dir }) => {
    const line = { bus, objects, tenant };
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir });
    expect(service).toBeDefined();
    const id = await dataset(line, somePairs(200));
    const method = { type: "simpo" as const };
    const of = async (packing: boolean) => {
      const run = await tokenized(line, await request(line, specOf(id, { method, tokenize: { max_length: 128, packing } })));
      return { ...run, rows: await rowsOf(line, run.manifest.train, dir) };
    };
    const [packed, single] = [await of(true), await of(false)];
    const pairsOf = (rows: readonly Row[]): string[] =>
      rows.flatMap((row) => {
        const all = sequencesOf(row);
        expect(row.sides).toEqual(all.map((_, index) => (index % 2 === 0 ? 1 : 0)));
        return all.flatMap(({ ids }, index) => (index % 2 === 0 ? [JSON.stringify([ids, all[index + 1]?.ids])] : []));
      });
    expect(pairsOf(packed.rows).sort()).toEqual(pairsOf(single.rows).sort());
    expect(packed.rows.length).toBeLessThan(single.rows.length / 1.5);
    expect(Math.max(...packed.rows.map(({ ids }) => ids.length))).toBeLessThanOrEqual(256);
    expect(Math.max(...packed.rows.map(({ ids }) => ids.length))).toBeGreaterThan(128);
  });

  test("are left out whole when one side is too long, and told with that side's length", async ({ bus, objects, tenant, dir }) => {
    const line = { bus, objects, tenant };
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir });
    expect(service).toBeDefined();
    const long = [pair(101, "Long?", "No.", "yes ".repeat(200)), pair(102, "Long, then?", "yes ".repeat(200), "No.")];
    for (const template of ["base", "seed"] as const) {
      const id = await dataset(line, [...somePairs(20), ...long]);
      const tokenize = { max_length: 100, template };
      const { data, manifest } = await tokenized(line, await request(line, specOf(id, { method: { type: "dpo" }, tokenize })));
      expect(data.totals).toMatchObject({ sequences: 36, evalSequences: 4, dropped: 2 });
      expect(manifest.reasons).toEqual({ TOO_LONG: 2 });
      expect(manifest.dropped.map(({ line: at, message }) => `${at} ${message}`)).toEqual([
        expect.stringMatching(/^101 the rejected side: 2\d\d tokens with its question; tokenize.max_length is 100\./),
        expect.stringMatching(/^102 the chosen side: 2\d\d tokens/),
      ]);
      const rows = await rowsOf(line, [...manifest.train, ...manifest.eval], dir);
      expect(Math.max(...rows.flatMap(({ lengths }) => lengths))).toBeLessThanOrEqual(100);
    }
  });

  test("of a list are the best against the rest, or all that differ in score", async ({ bus, objects, tenant, dir }) => {
    const line = { bus, objects, tenant };
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir });
    expect(service).toBeDefined();
    const lists = [ranked(1, "Which?", [2, 5, 2, 1]), ranked(2, "Unscored?", [undefined, undefined]), ranked(3, "Tie?", [3, 3])];
    const id = await dataset(line, [...lists, ...somePairs(12, 10)]);
    const of = async (pairs: "best" | "all") => {
      const run = await tokenized(line, await request(line, specOf(id, { method: { type: "orpo", pairs }, holdout: 0 })));
      const rows = (await rowsOf(line, run.manifest.train, dir)).map(sequencesOf);
      const prompt = rows.find((row) => rows.filter((other) => other[0]?.prompt === row[0]?.prompt).length > 1)?.[0]?.prompt;
      // "Answer", " ", the number, ".", end of turn
      const numbers = rows.filter((row) => row[0]?.prompt === prompt).map((row) => row.map(({ trained }) => trained.at(-3)));
      return { ...run, numbers };
    };
    const [best, all] = [await of("best"), await of("all")];
    expect(best.manifest.reasons).toEqual({ RANKING_UNKNOWN: 2 });
    expect(best.numbers).toHaveLength(3);
    expect(new Set(best.numbers.map(([chosen]) => chosen)).size).toBe(1);
    expect(new Set(best.numbers.map(([, other]) => other)).size).toBe(3);
    // 5 over 2, 2 and 1; each 2 over 1; the two 2s are a tie.
    expect(all.numbers).toHaveLength(5);
    expect(all.numbers.map(String)).toEqual(expect.arrayContaining(best.numbers.map(String)));
  });

  test("share no record with what is held out; a question on both sides is told", async ({ bus, objects, tenant, dir }) => {
    const line = { bus, objects, tenant };
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir });
    expect(service).toBeDefined();
    // Each question has two pairs, in different records.
    const records = Array.from({ length: 40 }, (_, index) =>
      pair(index + 1, `Question ${index % 20}?`, `Yes ${index}.`, `Perhaps ${index}.`),
    );
    const { manifest } = await tokenized(
      line,
      await request(line, specOf(await dataset(line, records), { method: { type: "dpo" }, holdout: 0.25 })),
    );
    const prompts = async (shards: typeof manifest.train) => (await rowsOf(line, shards, dir)).map((row) => sequencesOf(row)[0]?.prompt);
    const [train, held] = [await prompts(manifest.train), new Set(await prompts(manifest.eval))];
    const leaked = train.filter((prompt) => held.has(prompt)).length;
    expect(leaked).toBeGreaterThan(0);
    expect(manifest.notes).toEqual({ PROMPT_HELD_OUT_TOO: leaked });
    expect(manifest.noted[0]).toMatchObject({
      code: "PROMPT_HELD_OUT_TOO",
      message: expect.stringMatching(/^its question is that of line \d+/) as unknown,
    });
  });

  test("are found in every chunk of a large dataset, on whatever replica", async ({ bus, objects, tenant, dir }) => {
    const line = { bus, objects, tenant };
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir });
    expect(service).toBeDefined();
    const id = await dataset(line, somePairs(2100), 700);
    const { data, manifest } = await tokenized(line, await request(line, specOf(id, { method: { type: "dpo" } })));
    expect(data.totals).toMatchObject({ sequences: 3780, evalSequences: 420, dropped: 0 });
    expect((await rowsOf(line, manifest.eval, dir)).every(({ sides }) => String(sides) === "1,0")).toBe(true);
  });

  test("must be as many as min_records says, each counted once", async ({ bus, objects, tenant }) => {
    const line = { bus, objects, tenant };
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir });
    expect(service).toBeDefined();
    const id = await dataset(line, [...somePairs(9), chatRecord(50, "Hm?", "Hm.")]);
    const method = { type: "dpo" as const };
    expect(await rejected(line, await request(line, specOf(id, { method })))).toMatchObject({
      code: "TOO_FEW_RECORDS",
      message: expect.stringMatching(/9 .*KIND_NOT_TRAINED/s) as unknown,
    });
    const enough = await request(line, specOf(id, { method, min_records: 9 }));
    expect((await tokenized(line, enough)).data.totals).toMatchObject({ sequences: 16, evalSequences: 2 });
    // The tokens are in the cache now, and there are no more of them.
    expect(await rejected(line, await request(line, specOf(id, { method })))).toMatchObject({ code: "TOO_FEW_RECORDS" });
  });
});

describe("labelled answers", () => {
  test("come from labels, from both sides of pairs and from lists, each with its side", async ({ bus, objects, tenant, dir }) => {
    const line = { bus, objects, tenant };
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir });
    expect(service).toBeDefined();
    const records = [
      ...Array.from({ length: 10 }, (_, index) =>
        labelled(index + 1, `Is ${index} even?`, index % 2 === 0 ? "Yes." : "No.", index % 3 === 0),
      ),
      pair(20, "Which?", "This.", "That."),
      ranked(21, "And?", [1, 3, 2]),
    ];
    const { manifest } = await tokenized(
      line,
      await request(line, specOf(await dataset(line, records), { method: { type: "kto" }, holdout: 0 })),
    );
    const rows = await rowsOf(line, manifest.train, dir);
    expect(rows.every(({ lengths, sides }) => lengths.length === 1 && sides?.length === 1)).toBe(true);
    expect(rows.map(({ sides }) => sides?.[0]).join("")).toBe("100100100110100");
  });
});

test("a method says of records that it does not train which one does", async ({ bus, objects, tenant }) => {
  const line = { bus, objects, tenant };
  await using service = await createTokenizeService({ bus, objects, telemetry, basesDir });
  expect(service).toBeDefined();
  const id = await dataset(line, [...someRecords(12), ...somePairs(12, 100), labelled(200, "Good?", "Yes.", true)]);
  const messages = async (method: "supervised" | "dpo" | "kto"): Promise<string[]> => {
    const { manifest } = await tokenized(line, await request(line, specOf(id, { method: { type: method } })));
    expect(Object.keys(manifest.reasons)).toEqual(["KIND_NOT_TRAINED"]);
    return [...new Set(manifest.dropped.map(({ message }) => message))];
  };
  expect(await messages("supervised")).toEqual([
    expect.stringContaining(
      "a preference (chosen and rejected), which supervised fine-tuning does not train. Set method to dpo, orpo or simpo",
    ),
    expect.stringContaining("labelled good or bad, which supervised fine-tuning does not train. Set method to kto"),
  ]);
  expect(await messages("dpo")).toEqual([
    expect.stringContaining(
      'one answer, with nothing to compare it with, which this run\'s method does not train; method "supervised" trains it',
    ),
    expect.stringContaining('method "kto" trains it'),
  ]);
  expect(await messages("kto")).toEqual([expect.stringContaining('method "supervised" trains it')]);
});

test("settings that would do nothing or harm are refused before anything is spent", async ({ bus, objects, tenant }) => {
  const line = { bus, objects, tenant };
  await using service = await createTokenizeService({ bus, objects, telemetry, basesDir });
  expect(service).toBeDefined();
  const id = await dataset(line, somePairs(12));
  const method = { type: "dpo" as const };
  for (const [param, spec] of [
    ["tokenize.too_long", { method, tokenize: { too_long: "trim-prompt" as const } }],
    ["training.neftune_noise_alpha", { method, training: { neftune_noise_alpha: 5 } }],
    ["gate_accuracy", { method, gate_accuracy: true }],
    ["method.label_smoothing", { method: { ...method, loss_type: "ipo" as const, label_smoothing: 0.1 } }],
  ] as const) {
    expect(await rejected(line, await request(line, specOf(id, spec)))).toMatchObject({ code: "SETTING_NOT_FOR_METHOD", param });
  }
});

describe("a judge", () => {
  test("is asked each pair in both orders, learns the letter alone, and is measured on pairs of which it saw neither order", async ({
    bus,
    objects,
    tenant,
    dir,
  }) => {
    const line = { bus, objects, tenant };
    await using service = await createTokenizeService({ bus, objects, telemetry, basesDir });
    expect(service).toBeDefined();
    const id = await dataset(line, [...somePairs(38), ranked(39, "Which?", [3, 1, 2]), pair(40, "Long?", "No.", "yes ".repeat(2000))]);
    const { data, manifest } = await tokenized(line, await request(line, specOf(id, { method: { type: "judge" } })));
    // 38 pairs and two of the list, in two orders each; of 39 records four are held out.
    expect(data.totals.sequences + data.totals.evalSequences).toBe(80);
    expect(data.totals).toMatchObject({ dropped: 1, supervised: data.totals.sequences, evalSupervised: data.totals.evalSequences });
    // Those of its own, and those that every adapter is asked.
    expect(manifest.probes.map(({ name }) => name.split("-")[0])).toEqual([...Array(4).fill("line"), ...Array(4).fill("neutral")]);
    expect(manifest.reasons).toEqual({ TOO_LONG: 1 });

    const { encoder } = await loadBase(join(basesDir, baseName));
    const asked = async (shards: typeof manifest.train) =>
      Promise.all(
        (await rowsOf(line, shards, dir)).flatMap((row) => {
          expect(row.sides).toBeUndefined();
          return sequencesOf(row).map(async ({ ids, trained }) => ({
            text: await encoder.decode(ids),
            letter: await encoder.decode(trained),
          }));
        }),
      );
    const [train, held] = [await asked(manifest.train), await asked(manifest.eval)];
    for (const { text, letter } of [...train, ...held]) {
      expect(text.endsWith(`assistant\n${letter}`)).toBe(true);
      const [, a = "", b = ""] = /Answer A:\n(.*)\n\nAnswer B:\n(.*?)<\|im_end\|>/s.exec(text) ?? [];
      const better = /^Sure: |^Answer 0\./;
      expect([better.test(a), better.test(b)]).toEqual([letter === "A", letter === "B"]);
    }
    const questionsOf = (of: typeof train): Set<string | undefined> => new Set(of.map(({ text }) => /Question:\n(.*)\n/.exec(text)?.[1]));
    expect(questionsOf(train).intersection(questionsOf(held)).size).toBe(0);
    expect(held.filter(({ letter }) => letter === "A")).toHaveLength(held.length / 2);
  });
});

test("a single list of answers gives pairs that are held out whole", async ({ bus, objects, tenant, dir }) => {
  const line = { bus, objects, tenant };
  await using service = await createTokenizeService({ bus, objects, telemetry, basesDir });
  expect(service).toBeDefined();
  const id = await dataset(line, [ranked(1, "Which?", [6, 5, 4, 3, 2, 1])]);
  const { data, manifest } = await tokenized(line, await request(line, specOf(id, { method: { type: "dpo", pairs: "all" } })));
  expect(data.totals).toMatchObject({ sequences: 26, evalSequences: 4 });
  for (const row of [...(await rowsOf(line, manifest.train, dir)), ...(await rowsOf(line, manifest.eval, dir))])
    expect(row.sides).toEqual([1, 0]);
});
