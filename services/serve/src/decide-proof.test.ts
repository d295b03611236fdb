import type { ProbeRecord } from "@loraline/contracts";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { decideProof, type Measured, proofLimits } from "./decide-proof.ts";

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
      agreementLimit: expect.closeTo(proofLimits.agreement + proofLimits.agreementShare * 5.725, 3),
      effect: 5.725,
      effectExpected: 5.725,
      baseAgreement: 0,
      scale: null,
      provenAt: at,
    });
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
