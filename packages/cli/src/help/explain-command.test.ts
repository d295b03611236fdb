import { expect, it } from "vitest";
import { explain, explainedLines } from "./explain-command.ts";

it("explains a code as it is read in a message", () => {
  expect(explain("SPEC_INVALID")).toMatchObject({ code: "SPEC_INVALID", audience: "user" });
  expect(explain("[spec_invalid]").code).toBe("SPEC_INVALID");
  expect(explain("not_found").code).toBe("not_found");
  expect(explainedLines(explain("PORT_TAKEN")).join("\n")).toMatch(
    /^PORT_TAKEN: Another program .+\nWhat to do: Stop it.+\nWho can do it: the operator of the servers.\nWhere it comes from: any program/,
  );
});

it("names codes that begin alike when there is none of this name", () => {
  expect(() => explain("SPEC_WRONG")).toThrow(/there is no code "SPEC_WRONG"\. Alike: SPEC_INVALID/);
  expect(() => explain("XYZ")).toThrow(/docs\/errors\.md/);
});
