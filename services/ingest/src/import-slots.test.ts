import { describe, expect, it } from "vitest";
import { createImportSlots } from "./import-slots.ts";

const never = new AbortController().signal;
/** Takes places; tells in which order they were got, and what was said of waiting. */
function line(places: number, most: number) {
  const slots = createImportSlots({ places, mostOf: () => most });
  const got: string[] = [];
  const said: string[] = [];
  const held = new Map<string, Disposable>();
  return {
    got,
    said,
    async ask(tenant: string, name: string, signal = never) {
      const slot = await slots.take(tenant, signal, (message) => said.push(`${name}: ${message}`));
      got.push(name);
      held.set(name, slot);
    },
    async end(name: string) {
      held.get(name)?.[Symbol.dispose]();
      await new Promise((resolve) => setImmediate(resolve));
    },
  };
}
const settled = () => new Promise((resolve) => setImmediate(resolve));

describe("places for imports", () => {
  it("are not for one tenant alone, however many it asks for", async () => {
    const { ask, got, said, end } = line(4, 2);
    void Promise.all(["a1", "a2", "a3", "a4"].map((name) => ask("acme", name)));
    void ask("beta", "b1");
    await settled();
    expect(got).toEqual(["a1", "a2", "b1"]);
    expect(said).toEqual([
      expect.stringMatching(/^a3: quota importsAtOnce: 2 imports of this tenant .* its quota is 2/),
      expect.stringMatching(/^a4/),
    ]);
    await end("a1");
    expect(got).toEqual(["a1", "a2", "b1", "a3"]);
  });

  it("go to the tenant that imports least, then to who came first", async () => {
    const { ask, got, said, end } = line(2, 2);
    for (const name of ["a1", "a2"]) await ask("acme", name);
    for (const [tenant, name] of [
      ["acme", "a3"],
      ["beta", "b1"],
      ["gamma", "c1"],
    ] as const)
      void ask(tenant, name);
    await settled();
    expect(said.at(-1)).toMatch(/^c1: all 2 imports that may be under way at once are/);
    await end("a1");
    await end("b1");
    await end("a2");
    expect(got).toEqual(["a1", "a2", "b1", "c1", "a3"]);
  });

  it("are waited for by few of one tenant; the others wait elsewhere", async () => {
    const { ask } = line(4, 1);
    await ask("acme", "a1");
    for (const name of ["a2", "a3"]) void ask("acme", name);
    await expect(ask("acme", "a4")).rejects.toMatchObject({ code: "QUOTA_IMPORTS", name: "UnavailableError" });
  });

  it("are not kept for who has left", async () => {
    const { ask, got, end } = line(1, 1);
    const leaving = new AbortController();
    await ask("acme", "a1");
    const gone = ask("beta", "b1", leaving.signal).catch((error: unknown) => error);
    void ask("gamma", "c1");
    leaving.abort(new Error("shutting down"));
    expect(await gone).toMatchObject({ message: "shutting down" });
    await end("a1");
    await end("a1");
    expect(got).toEqual(["a1", "c1"]);
  });
});
