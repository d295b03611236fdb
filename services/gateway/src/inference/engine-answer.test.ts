import { describe, expect, it } from "vitest";
import { createEventFilter, engineErrorOf, renameModel, usageOf } from "./engine-answer.ts";

const renaming = { from: "acme.pirate.v1.abc", to: "acme/pirate@1" };

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

describe("createEventFilter", () => {
  const lines = [
    ...["Arr ☠", "é", ""].map((content) => ({ model: renaming.from, choices: [{ delta: { content } }] })),
    { model: renaming.from, choices: [], usage: { prompt_tokens: 7, total_tokens: 10, completion_tokens: 3, details: { cached: 2 } } },
  ];
  const eventOf = (value: object): string => `data: ${JSON.stringify(value)}\n\n`;
  const stream = Buffer.from(`${lines.map(eventOf).join("")}data: [DONE]\n\n`);
  const filtered = (bytes: Buffer, size: number, hideUsage: boolean, names = renaming) => {
    const filter = createEventFilter(names, { hideUsage });
    let out = "";
    for (let at = 0; at < bytes.length; at += size) out += filter.push(bytes.subarray(at, at + size)).toString();
    out += filter.end().toString();
    return { out, usage: filter.usage, events: filter.events };
  };

  it("gives the same whatever way the bytes are cut, and counts", () => {
    const renamed = stream.toString().replaceAll(renaming.from, renaming.to);
    const [, , , last] = lines.map((line) => eventOf(line).replace(renaming.from, renaming.to));
    for (let size = 1; size <= stream.length; size++) {
      const usage = { prompt: 7, completion: 3 };
      expect(filtered(stream, size, false)).toEqual({ out: renamed, usage, events: 5 });
      expect(filtered(stream, size, true)).toEqual({ out: renamed.replace(last ?? "", ""), usage, events: 4 });
    }
  });

  it("keeps back nothing but the event that holds only the count", () => {
    const withWords = eventOf({ choices: [{ delta: { content: "la" } }], usage: { prompt_tokens: 1, completion_tokens: 1 } });
    const quoted = eventOf({ choices: [{ delta: { content: '"usage":{"prompt_tokens":9,"completion_tokens":9},"choices":[]' } }] });
    const without = eventOf({ choices: [{ delta: {} }], usage: null });
    const bytes = Buffer.from(withWords + quoted + without);
    expect(filtered(bytes, 11, true)).toEqual({ out: bytes.toString(), usage: { prompt: 1, completion: 1 }, events: 3 });
  });

  it("tells a failure of the engine in the middle from what the caller did wrong, and from what the model says", () => {
    const failureIn = (text: string, size = 5): string | undefined => {
      const filter = createEventFilter(renaming, { hideUsage: true });
      const bytes = Buffer.from(text);
      for (let at = 0; at < bytes.length; at += size) filter.push(bytes.subarray(at, at + size));
      filter.end();
      return filter.failure;
    };
    // As vLLM writes it: Python's spaces.
    const failed = (code: number): string =>
      `data: {"error": {"message": "CUDA error", "type": "InternalServerError", "param": null, "code": ${code}}}\n\n`;
    expect(failureIn(stream.toString())).toBeUndefined();
    expect(failureIn(`${eventOf(lines[0] ?? {})}${failed(500)}data: [DONE]\n\n`)).toBe("CUDA error");
    expect(failureIn(failed(400))).toBeUndefined();
    expect(failureIn(eventOf({ choices: [{ delta: { content: failed(500) } }] }))).toBeUndefined();
  });

  it("passes a base's events on untouched, and lines that end as HTTP's do", () => {
    const same = { from: "base", to: "base" };
    expect(filtered(stream, 7, false, same).out).toBe(stream.toString());
    const other = Buffer.from(stream.toString().replaceAll("\n", "\r\n"));
    expect(filtered(other, 7, true, same).out).toBe(`${lines.slice(0, 3).map(eventOf).join("")}data: [DONE]\n\n`.replaceAll("\n", "\r\n"));
  });
});

describe("usageOf", () => {
  it.each([
    ['{"choices":[],"usage":{"prompt_tokens":3,"total_tokens":5,"completion_tokens":2}}', { prompt: 3, completion: 2 }],
    ['{"usage": {"prompt_tokens":3,"x":{"y":1},"total_tokens":3},"id":"e"}', { prompt: 3, completion: 0 }],
    ['{"usage":null}', undefined],
    ['{"content":"\\"usage\\":{\\"prompt_tokens\\":3}"}', undefined],
    ['{"usage":{"prompt_tokens":', undefined],
    ["not json", undefined],
  ])("%s", (json, expected) => {
    expect(usageOf(json)).toEqual(expected);
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
