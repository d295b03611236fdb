import type { ProbeRecord } from "@loraline/contracts";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type ComputedIn, decideProof, type Measured, proofLimits } from "./decide-proof.ts";

const at = "2026-01-01T00:00:00.000Z";
const record = (base: number[], adapter: number[], tokens = base.map((_, i) => i), length = 4): ProbeRecord => ({
  name: "p",
  input_ids: Array.from({ length }, (_, i) => i),
  base: { tokens: [], logprobs: [] },
  adapter: { tokens: [], logprobs: [], base_logprobs: [] },
  first: { tokens, base, adapter },
});
const said = (of: ProbeRecord, over: { base?: number[]; adapter?: number[] } = {}): Measured => ({
  record: of,
  base: over.base ?? of.first.base,
  adapter: over.adapter ?? of.first.adapter,
});
const strong = record([-1, -3, -6, -9], [-9, -6, -3, -0.1]);
const code = (...measured: Measured[]) => {
  const decision = decideProof(measured, at);
  return decision.kind === "proven" ? "proven" : decision.problem.code;
};

describe("decideProof", () => {
  it("proves a replica that answers as the trainer recorded, rounding aside", () => {
    expect(code(said(strong))).toBe("proven");
    expect(code(said(strong, { adapter: strong.first.adapter.map((x) => x + 0.2), base: strong.first.base.map((x) => x - 0.1) }))).toBe(
      "proven",
    );
    expect(decideProof([said(strong)], at).proof).toEqual({
      probes: 1,
      tokens: 4,
      agreement: 0,
      agreementLimit: expect.closeTo(proofLimits.bfloat16.agreement + proofLimits.bfloat16.agreementShare * 5.725, 3),
      effect: 5.725,
      effectExpected: 5.725,
      baseAgreement: 0,
      scale: null,
      unseen: expect.closeTo((proofLimits.bfloat16.agreement + proofLimits.bfloat16.agreementShare * 5.725) / 5.725, 3),
      answers: [{ base: -9, trainer: -0.1, replica: -0.1 }],
      provenAt: at,
    });
    const { answers } = decideProof([said(strong, { adapter: [-9, -6, -3, -0.25] })], at).proof;
    expect(answers, "the replica's own number").toEqual([{ base: -9, trainer: -0.1, replica: -0.25 }]);
  });

  it("tells one fault from another", () => {
    const scaled = (by: number) => strong.first.base.map((x, i) => x + by * ((strong.first.adapter[i] as number) - x));
    expect(code(said(strong, { adapter: strong.first.base }))).toBe("PROOF_WITHOUT_EFFECT");
    expect(code(said(strong, { adapter: scaled(2) }))).toBe("PROOF_SCALING");
    expect(code(said(strong, { adapter: scaled(0.5) }))).toBe("PROOF_SCALING");
    expect(code(said(strong, { adapter: [-3, -9, -0.5, -9] }))).toBe("PROOF_DISAGREES");
    expect(code(said(strong, { base: [-4, -1, -9, -2] }))).toBe("PROOF_BASE_DIFFERS");
    expect(code(said(strong, { adapter: [Number.NaN, -1, -1, -1] }))).toBe("PROOF_NOT_FINITE");
    expect(code(said(record([-1, -2], [-1, -2])))).toBe("NO_EFFECT");
    expect(code()).toBe("PROOF_WITHOUT_PROBES");
  });

  it("proves a hardly trained adapter by its presence alone, and refuses it when it is absent", () => {
    const weak = record([-1, -2, -3], [-1.08, -1.94, -3.09]);
    expect(code(said(weak, { adapter: [-1.02, -2.04, -3.05] }))).toBe("proven");
    expect(code(said(weak, { adapter: weak.first.base }))).toBe("PROOF_WITHOUT_EFFECT");
  });

  const logprob = fc.double({ min: -20, max: 0, noNaN: true });
  const rows = fc.array(fc.tuple(logprob, logprob), { minLength: 8, maxLength: 40 });

  it("never proves a replica that answers like its base where an effect was recorded (property)", () => {
    fc.assert(
      fc.property(rows, fc.double({ min: -0.01, max: 0.01, noNaN: true }), (pairs, jitter) => {
        const of = record(
          pairs.map(([x]) => x),
          pairs.map(([, y]) => y),
        );
        const effect = pairs.reduce((sum, [x, y]) => sum + Math.abs(x - y), 0) / pairs.length;
        fc.pre(effect > 0.1);
        expect(code(said(of, { adapter: of.first.base.map((x) => x + jitter) }))).not.toBe("proven");
      }),
    );
  });

  it("proves exactly what stays within the limit it reports (property)", () => {
    fc.assert(
      fc.property(rows, fc.double({ min: 0, max: 3, noNaN: true }), (pairs, off) => {
        const of = record(
          pairs.map(([x]) => x),
          pairs.map(([, y]) => y),
        );
        const { kind, proof, ...rest } = decideProof([said(of, { adapter: of.first.adapter.map((x) => x + off) })], at);
        // Close to the limit rounding decides; an adapter without an effect has a reason of its own.
        fc.pre(Math.abs(proof.agreement - proof.agreementLimit) > 1e-3);
        const about = "problem" in rest ? rest.problem.code : "proven";
        fc.pre(kind === "proven" || about === "PROOF_SCALING" || about === "PROOF_DISAGREES");
        expect(kind === "proven").toBe(proof.agreement < proof.agreementLimit);
      }),
    );
  });
});

/** What a trainer recorded and a real vLLM answered, both in bf16; how it was made stands in decide-proof.ts. */
type Answers = number[][];
type Adapter = { recorded: ProbeRecord["first"][]; base: Answers } & Record<"right" | "x2" | "x0.5" | "shifted", Answers>;
const effects = JSON.parse(await readFile(join(import.meta.dirname, "../testdata/effects-in-bf16.json"), "utf8")) as Record<
  string,
  Adapter
>;
const real = (strength: string, kind: "right" | "x2" | "x0.5" | "shifted" | "base", of = strength) => {
  const { recorded, base } = effects[strength] as Adapter;
  const records = recorded.map((first) => ({ ...record([], []), first }));
  return decideProof(
    records.map((one, i) => ({ record: one, base: base[i] ?? [], adapter: effects[of]?.[kind][i] ?? [] })),
    at,
  );
};
const codeOf = (decision: ReturnType<typeof decideProof>): string => (decision.kind === "proven" ? "proven" : decision.problem.code);

describe("answers of a real engine", () => {
  it.each(["strong", "medium", "weak", "faint"])("%s: half and twice the scale, other layers and the base are told", (strength) => {
    const right = real(strength, "right");
    expect(codeOf(right)).toBe("proven");
    expect(right.proof.scale?.value).toBeGreaterThan(0.75);
    expect(right.proof.scale?.value).toBeLessThan(1.1);
    expect(codeOf(real(strength, "x2"))).toBe("PROOF_SCALING");
    expect(codeOf(real(strength, "x0.5"))).toBe("PROOF_SCALING");
    expect(codeOf(real(strength, "shifted"))).toMatch(/PROOF_(WITHOUT_EFFECT|DISAGREES)/);
    expect(codeOf(real(strength, "base"))).toBe("PROOF_WITHOUT_EFFECT");
  });

  it("what hardly trained is proven to be there, and its scale is not claimed", () => {
    const right = real("hardly", "right");
    expect(codeOf(right)).toBe("proven");
    expect(right.proof.scale).toBeNull();
    expect(codeOf(real("hardly", "base"))).toBe("PROOF_WITHOUT_EFFECT");
  });
});

/** The same in float32, and in one each: how they were made stands in decide-proof.ts too. Kinds `zero7`: lora_B of layer 7 is zero. */
type Kind = "right" | "zero0" | "zero7" | "zero15" | "zero22" | "zero29" | "halved15" | "swapped" | "x0.8" | "shifted";
interface Pair {
  computed: ComputedIn;
  recorded: ProbeRecord["first"][];
  base: Answers;
  answers: Partial<Record<Kind, Answers>>;
}
const pairs = JSON.parse(await readFile(join(import.meta.dirname, "../testdata/effects-in-float32.json"), "utf8")) as Record<string, Pair>;
const ofPair = (name: string, kind: Kind, computed = pairs[name]?.computed) => {
  const { recorded, base, answers } = pairs[name] as Pair;
  return decideProof(
    recorded.map((first, i) => ({ record: { ...record([], []), first }, base: base[i] ?? [], adapter: answers[kind]?.[i] ?? [] })),
    at,
    computed,
  );
};

describe("answers of a real engine in float32", () => {
  it.each(["medium", "weak", "hardly"])(
    "%s, recorded in float32 too: a single layer of 30 that is zero, halved or swapped is told",
    (name) => {
      const right = ofPair(name, "right");
      expect(codeOf(right)).toBe("proven");
      expect(right.proof.agreement).toBeLessThan(0.0001);
      expect(right.proof.scale?.value).toBeCloseTo(1, 3);
      for (const kind of ["zero0", "zero7", "zero15", "zero22", "zero29", "halved15", "swapped", "x0.8"] as const)
        expect([kind, codeOf(ofPair(name, kind))]).toEqual([kind, expect.stringMatching(/PROOF_(SCALING|DISAGREES)/)]);
      expect(codeOf(ofPair(name, "shifted"))).toMatch(/PROOF_(WITHOUT_EFFECT|DISAGREES)/);
    },
  );

  it.each(["medium on bfloat16", "weak on bfloat16", "weak of bfloat16"])(
    "%s: the right bytes are proven, though a weak effect is another one",
    (name) => {
      expect(codeOf(ofPair(name, "right"))).toBe("proven");
      expect(codeOf(ofPair(name, "shifted"))).toMatch(/PROOF_(WITHOUT_EFFECT|DISAGREES)/);
    },
  );

  it("a replica whose record says float32 while it still computes in bf16 is not taken for one with other bytes", () => {
    const both = { recorded: "float32", replica: "float32" } as const;
    expect(codeOf(ofPair("weak on bfloat16", "right", both))).toBe("proven");
    expect(codeOf(ofPair("weak on bfloat16", "shifted", both))).toMatch(/PROOF_(WITHOUT_EFFECT|DISAGREES)/);
  });
});

describe("what a proof could not have seen", () => {
  /** The engine's right answers, as they would be if a share of the adapter's effect were missing. */
  const lacking = (recorded: ProbeRecord["first"][], base: Answers, right: Answers, share: number, computed?: ComputedIn) =>
    decideProof(
      recorded.map((first, i) => ({
        record: { ...record([], []), first },
        base: base[i] ?? [],
        adapter: (right[i] ?? []).map((logprob, k) => logprob - share * (logprob - (base[i]?.[k] ?? 0))),
      })),
      at,
      computed,
    );
  const measured = [
    ...Object.entries(effects).map(([name, { recorded, base, right }]) => ({ name, recorded, base, right, computed: undefined })),
    ...Object.entries(pairs).map(([name, of]) => ({ ...of, name: `${name} in float32`, right: of.answers.right ?? [] })),
  ];
  it.each(measured)(
    "$name: more than it says is refused when it is missing, and not much less",
    ({ name, recorded, base, right, computed }) => {
      const whole = lacking(recorded, base, right, 0, computed);
      expect(codeOf(whole)).toBe("proven");
      const unseen = whole.proof.unseen ?? Number.NaN;
      for (const more of [1.02, 1.3, 2].map((by) => by * unseen).filter((share) => share < 1))
        expect([more, codeOf(lacking(recorded, base, right, more, computed))]).toEqual([more, expect.stringMatching(/^PROOF_/)]);
      expect(codeOf(lacking(recorded, base, right, 1, computed)), "all is missing").toBe("PROOF_WITHOUT_EFFECT");
      // A faint adapter shows only 78 % of its effect when all is right; and where only the presence is proven, there is no less.
      const less = unseen < 1 && name !== "faint" ? unseen / 3 : 0;
      expect(codeOf(lacking(recorded, base, right, less, computed))).toBe("proven");
    },
  );

  it("in float32 one layer of 30 is seen, in bf16 no single one; of what hardly trained only the presence is", () => {
    const unseenOf = (name: string): number => real(name, "right").proof.unseen ?? Number.NaN;
    for (const name of ["medium", "weak", "hardly"]) expect(ofPair(name, "right").proof.unseen).toBeLessThan(1 / 30 / 5);
    expect(["strong", "medium", "weak", "faint", "hardly"].map((name) => unseenOf(name).toFixed(2))).toEqual([
      "0.05",
      "0.17",
      "0.20",
      "0.47",
      "1.00",
    ]);
  });
});
