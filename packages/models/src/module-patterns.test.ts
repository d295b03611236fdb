import { createContext, runInContext } from "node:vm";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { judgePattern, waysOf } from "./module-patterns.ts";

describe("judgePattern", () => {
  it.each(["(a+)+$", "(a|aa)+$", "([a-z_.]+)*x", "(.*)*", "((a?)b)+", "(x+x+)+y", ".*.*.*.*.*x", "(a{1,9}){1,9}b", "a".repeat(2000)])(
    "refuses %s, which may take for ever",
    (pattern) => {
      expect(judgePattern(pattern).kind).toBe("costly");
    },
  );

  it.each([
    ["q_proj", "q_proj"],
    [String.raw`.*\.(q|k|v|o)_proj`, "model.layers.0.self_attn.v_proj"],
    [String.raw`.*\.layers\.([0-9]|1[0-5])\..*\.(up|down)_proj`, "model.layers.12.mlp.up_proj"],
    [String.raw`model\.layers\.\d{1,2}\.self_attn\.[qv]_proj`, "model.layers.7.self_attn.q_proj"],
    ["(?:.*[.])?(?:gate|up)_proj(?!x)", "mlp.gate_proj"],
    [String.raw`.*?\.fc[12]`, "model.layers.0.fc1"],
  ])("takes %s", (pattern, name) => {
    const verdict = judgePattern(pattern);
    expect(verdict.kind).toBe("usable");
    expect(verdict.kind === "usable" && [verdict.test(name), verdict.test(`${name}.x.y`)]).toEqual([true, false]);
  });

  it("leaves to Python what only Python knows, but not for ever", () => {
    expect(judgePattern(String.raw`(?i).*\.(?P<which>q|v)_proj\Z`).kind).toBe("only-python");
    expect(judgePattern("[]a]+").kind).toBe("only-python");
    expect(judgePattern("(?i)(a+)+").kind).toBe("costly");
    expect(judgePattern("(q_proj").kind).toBe("invalid");
    expect(judgePattern("q_proj)").kind).toBe("invalid");
    expect(judgePattern("a*)+(").kind, "not even where the parentheses around it would mend it").toBe("invalid");
  });

  // In a context of its own, where an expression that runs on can be ended: here it would hang the whole run.
  it("lets nothing through that runs on for ever (property)", { timeout: 60_000 }, () => {
    const piece = fc.constantFrom("a", ".", "[a-z]", "(", ")", "|", "*", "+", "?", "{2}", "{1,3}", "a*", ".*", "(a|b)", "_");
    const name = `${"a".repeat(60)}!`;
    const context = createContext({ name });
    fc.assert(
      fc.property(fc.array(piece, { minLength: 1, maxLength: 12 }), (pieces) => {
        const source = pieces.join("");
        if (judgePattern(source).kind !== "usable") return;
        const matching = `new RegExp(${JSON.stringify(`^(?:${source})$`)}).test(name)`;
        expect(() => runInContext(matching, context, { timeout: 10_000 }) as boolean, source).not.toThrow();
      }),
      { numRuns: 3000 },
    );
  });

  it("counts ways", () => {
    expect(waysOf("model.layers.0")).toBe(1);
    expect(waysOf("(a|b|c)d?")).toBe(6);
    expect(waysOf(".*x.+")).toBe(32 * 32);
    expect(waysOf("(ab)*")).toBe(32);
  });
});
