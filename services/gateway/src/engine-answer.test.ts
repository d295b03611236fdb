import { describe, expect, it } from "vitest";
import { engineErrorOf, renameEvents, renameModel } from "./engine-answer.ts";

const renaming = { from: "acme.pirate.v1.abc", to: "acme/pirate@1" };
const text = (parts: Uint8Array[]): string => Buffer.concat(parts).toString();
async function* chunked(bytes: Buffer, size: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

describe("renameModel", () => {
  it("changes the field and leaves every other byte as the engine wrote it", () => {
    const json = `{"id":"x","model":"acme.pirate.v1.abc","n":1.0,"big":12345678901234567890,"choices":[]}`;
    expect(renameModel(json, renaming)).toBe(json.replace("acme.pirate.v1.abc", "acme/pirate@1"));
    expect(renameModel(`{"model": "acme.pirate.v1.abc"}`, renaming)).toBe(`{"model": "acme/pirate@1"}`);
  });

  it("cannot be tricked by what the model says", () => {
    const content = `{"model":"acme.pirate.v1.abc"} and "model":"acme.pirate.v1.abc"`;
    const json = JSON.stringify({ model: renaming.from, choices: [{ message: { content } }] });
    expect(JSON.parse(renameModel(json, renaming))).toEqual({ model: renaming.to, choices: [{ message: { content } }] });
  });
});

describe("renameEvents", () => {
  const events = ["Arr ☠", "é", ""].map((content) => `data: ${JSON.stringify({ model: renaming.from, content })}\n\n`).join("");
  const stream = Buffer.from(`${events}data: [DONE]\n\n`);

  it("gives the same whatever way the bytes are cut", async () => {
    const expected = stream.toString().replaceAll(renaming.from, renaming.to);
    for (let size = 1; size <= stream.length; size++) {
      const parts = await Array.fromAsync(renameEvents(chunked(stream, size), renaming, () => {}));
      expect(text(parts)).toBe(expected);
    }
  });

  it("passes a base's events on untouched", async () => {
    const same = { from: "base", to: "base" };
    expect(text(await Array.fromAsync(renameEvents(chunked(stream, 7), same, () => {})))).toBe(stream.toString());
  });

  it("ends with an error event when the engine breaks off", async () => {
    async function* broken(): AsyncGenerator<Uint8Array> {
      yield Buffer.from(`data: {"model":"${renaming.from}","content":"half`);
      throw new Error("socket hang up");
    }
    const causes: unknown[] = [];
    const parts = await Array.fromAsync(renameEvents(broken(), renaming, (error) => causes.push(error)));
    const last = text(parts).trim().split("\n").at(-1) ?? "";
    expect(JSON.parse(last.slice("data: ".length))).toMatchObject({ error: { code: "engine_broke_off", type: "server_error" } });
    expect(causes).toMatchObject([{ message: "socket hang up" }]);
  });
});

describe("engineErrorOf", () => {
  it.each([
    [400, `{"error":{"message":"bad acme.pirate.v1.abc","type":"BadRequestError","param":"n","code":400}}`, "bad acme/pirate@1", null, "n"],
    [400, `{"object":"error","message":"old shape","type":"BadRequestError","param":null,"code":400}`, "old shape", null, null],
    [404, `{"detail":"Not Found"}`, "Not Found", null, null],
    [500, "Internal Server Error", "Internal Server Error", "engine_error", null],
    [502, "", "The engine answered 502.", "engine_error", null],
    [422, `{"error":{"message":"m","code":"own_code"}}`, "m", "own_code", null],
  ])("%i %s", (status, body, message, code, param) => {
    const type = status >= 500 ? "server_error" : "invalid_request_error";
    expect(engineErrorOf(status, body, renaming)).toEqual({ error: { message, type, code, param } });
  });
});
