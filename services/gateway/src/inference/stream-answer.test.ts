import { EventEmitter } from "node:events";
import { describe, expect, it } from "vitest";
import { streamAnswer } from "./stream-answer.ts";

/** A client that takes nothing more once `full`, and remembers what it got. */
class Client extends EventEmitter {
  destroyed = false;
  full = false;
  got = "";
  ended = false;
  head: [number, Record<string, string>] | undefined;
  writeHead(status: number, headers: Record<string, string>) {
    this.head = [status, headers];
  }
  write(bytes: Buffer) {
    this.got += bytes.toString();
    return !this.full;
  }
  end(bytes: Buffer | string) {
    this.got += bytes.toString();
    this.ended = true;
  }
}

function stream(hideUsage = true) {
  const client = new Client();
  const ends: unknown[] = [];
  const broken: string[] = [];
  const reader = streamAnswer(
    { raw: client, hijack() {}, getHeaders: () => ({ "x-loraline-version": "3" }) } as never,
    "text/event-stream; charset=utf-8",
    {
      renaming: { from: "e.1", to: "acme/pirate@3" },
      hideUsage,
      onEnd: (...end) => ends.push(end),
      onBroken: ({ message }) => broken.push(message),
    },
  );
  return { client, reader, ends, broken };
}
const event = (value: object): Buffer => Buffer.from(`data: ${JSON.stringify(value)}\n\n`);
const word = event({ model: "e.1", choices: [{ delta: { content: "arr" } }] });
const usage = event({ model: "e.1", choices: [], usage: { prompt_tokens: 7, completion_tokens: 2 } });

describe("the stream of an engine", () => {
  it("goes on under the pinned name, with the count kept back and told at the end", () => {
    const { client, reader, ends } = stream();
    expect(client.head).toMatchObject([200, { "x-loraline-version": "3", "content-type": "text/event-stream; charset=utf-8" }]);
    expect(reader.read(word, () => {})).toBe(true);
    reader.read(usage, () => {});
    reader.end();
    expect(client.got).toBe(word.toString().replace("e.1", "acme/pirate@3"));
    expect(client.ended).toBe(true);
    expect(ends).toEqual([["served", { prompt: 7, completion: 2 }]]);
  });

  it("is slowed down to the client's pace", () => {
    const { client, reader } = stream();
    client.full = true;
    let resumed = 0;
    expect(reader.read(word, () => resumed++)).toBe(false);
    client.emit("drain");
    client.emit("drain");
    expect(resumed).toBe(1);
  });

  it("that breaks off is a failure, which the client is told, with the events so far for an estimate", () => {
    const { client, reader, ends, broken } = stream();
    reader.read(word, () => {});
    reader.broken(new Error("socket closed"));
    expect(broken).toEqual(["socket closed"]);
    expect(ends).toEqual([["failed", { events: 1 }]]);
    expect(client.got).toMatch(/"code":"engine_broke_off"/);
  });

  it("that the client leaves is no failure of the engine", () => {
    const { client, reader, ends, broken } = stream();
    reader.read(word, () => {});
    client.destroyed = true;
    reader.broken(new Error("the client went away"));
    expect([broken, client.ended]).toEqual([[], false]);
    expect(ends).toEqual([["served", { events: 1 }]]);
  });

  it("that ends in good order with an error event is a failure too", () => {
    const { reader, ends, broken } = stream();
    reader.read(event({ error: { message: "CUDA error", code: 500 } }), () => {});
    reader.end();
    expect(broken).toEqual(["CUDA error"]);
    expect(ends).toMatchObject([["failed", {}]]);
  });
});
