import { Template } from "@huggingface/jinja";
import { describe, expect, it } from "vitest";
import { parseExact, pythonNumber } from "./python-json.ts";

describe("pythonNumber", () => {
  // Right: what Python's json.dumps(json.loads(left)) prints.
  it.each([
    ["1", "1"],
    ["1.0", "1.0"],
    ["-0", "0"],
    ["-0.0", "-0.0"],
    ["3.14", "3.14"],
    ["1e5", "100000.0"],
    ["1E-7", "1e-07"],
    ["0.00001", "1e-05"],
    ["0.0001", "0.0001"],
    ["0.00123", "0.00123"],
    ["1e16", "1e+16"],
    ["1234567890123456.7", "1234567890123456.8"],
    ["123456789012345678901234567890", "123456789012345678901234567890"],
    ["-2.5e-5", "-2.5e-05"],
    ["1e400", "Infinity"],
    ["1.5e300", "1.5e+300"],
  ])("%s is %s", (source, printed) => expect(pythonNumber(source)).toBe(printed));
});

describe("parseExact", () => {
  it("is printed by a template as Python prints it: numbers, key order, nesting", () => {
    const text = '{"b": 1.0, "2": [1e5, {"10": 1, "9": -0.0}], "1": "x: 1.0", "a\\"1\\":": 123456789012345678901}';
    expect(new Template("{{ value | tojson }}").render({ value: parseExact(text) })).toBe(
      '{"b": 1.0, "2": [100000.0, {"10": 1, "9": -0.0}], "1": "x: 1.0", "a\\"1\\":": 123456789012345678901}',
    );
    expect(new Template("{{ value }} {{ value is number }} {{ value > 0.5 }}").render({ value: parseExact("1.0") })).toBe("1.0 True True");
  });
  it("refuses what is no JSON", () => expect(() => parseExact("{a}")).toThrow(SyntaxError));
});

describe("our patch of @huggingface/jinja", () => {
  it.each([
    ["{{ '\n\n a\n'.lstrip('\n') }}|", " a\n|"],
    ["{{ x | trim }}|", "\uFEFFa\uFEFF|"],
    ["{{ '0' == false }} {{ '' == 0 }} {{ 1 == true }} {{ none == undefined }} {{ [1, 'a'] == [1, 'a'] }}", "False False True False True"],
    ["{{ none }} {{ true }} {{ true | string }} {{ 1 ~ none_is_set }}", "None True True 1"],
  ])("%j gives %j, as in Python", (template, text) => {
    expect(new Template(template).render({ x: "\u001c\uFEFFa\uFEFF\u0085", none_is_set: "" })).toBe(text);
  });
  it.each(["{{ value }}", "{{ 'a' + value }}", "{{ value | string }}"])(
    "%j throws instead of printing a dict in another notation",
    (template) => {
      expect(() => new Template(template).render({ value: { a: 1 } })).toThrow(/Python's own notation|concatenate|filter: string/);
    },
  );

  it("of a text that is no JSON is an error at once, and a long string none", () => {
    const begun = performance.now();
    // A call's arguments are any text that a row holds.
    expect(() => parseExact(`"${'\\"'.repeat(100_000)}`)).toThrow(SyntaxError);
    expect(performance.now() - begun).toBeLessThan(2000);
    const long = { a: `"${"\\x".repeat(2_000_000)}` };
    expect(parseExact(JSON.stringify(long))).toEqual(long);
  });
});
