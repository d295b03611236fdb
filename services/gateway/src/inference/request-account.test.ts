import { beforeEach, describe, expect, it } from "vitest";
import { openAccount, type RequestAccount } from "./request-account.ts";

let did: Record<string, unknown[]>;
let account: RequestAccount;
beforeEach(() => {
  did = { began: [], ended: [], tokens: [], charged: [], used: [] };
  const measured = {
    begin: () => did["began"]?.push(1),
    firstByte: () => {},
    end: (outcome: string) => did["ended"]?.push(outcome),
    tokens: (prompt: number, completion: number) => did["tokens"]?.push([prompt, completion]),
  };
  account = openAccount({ metrics: { model: () => measured }, usage: { count: (used: unknown) => did["used"]?.push(used) } } as never, {
    routed: {
      kind: "route",
      model: "acme/pirate@3",
      engineModel: "e.1",
      version: { version: 3 },
      replicas: [{ state: { base: "b" } }],
    } as never,
    request: { caller: { tenant: "acme" } } as never,
    admission: { headers: {}, end: (tokens: number) => did["charged"]?.push(tokens) },
    bytes: 41,
  });
});
const row = { tenant: "acme", model: "acme/pirate@3", base: "b", adapter: "pirate", version: 3 };

describe("the account of a request", () => {
  it("is closed once, with the engine's count", () => {
    account.end("served", { prompt: 7, completion: 2 });
    account.end("failed", null);
    expect(did).toEqual({
      began: [1],
      ended: ["served"],
      tokens: [[7, 2]],
      charged: [9],
      used: [{ ...row, promptTokens: 7, completionTokens: 2, failed: false, estimated: false }],
    });
  });

  it("estimates what a broken answer used, and charges the limit with the most it could", () => {
    account.end("failed", { events: 5 });
    expect(did).toMatchObject({
      charged: [Number.POSITIVE_INFINITY],
      used: [{ promptTokens: 11, completionTokens: 5, failed: true, estimated: true }],
    });
  });

  it("counts a failure without an answer as a request that used nothing, and what the client did wrong not at all", () => {
    account.end("failed", null);
    expect(did).toMatchObject({ charged: [0], used: [{ promptTokens: 0, completionTokens: 0, failed: true, estimated: false }] });
  });

  it("gives the limit back what a refused request had reserved, and counts it under no model", () => {
    account.end("ignored", null);
    expect(did).toMatchObject({ ended: ["ignored"], charged: [0], tokens: [], used: [] });
  });
});
