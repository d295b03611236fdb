import { Writable } from "node:stream";
import { ApiError } from "@loraline/client";
import { expect, it } from "vitest";
import { moveAlias } from "./move-alias.ts";
import type { AdapterView } from "./show-adapter.ts";

const at = "2026-01-01T10:00:00.000Z";
const awaiting = { kind: "promote" as const, version: 1, by: "ann", command: 7, since: at };
type State = AdapterView["adapter"];
const view = (over: Partial<State>): AdapterView => ({
  adapter: { tenant: "acme", adapter: "pirate", engine: "local", base: "small", versions: [], alias: 5, history: [], ...over },
  replicas: [],
});
const line = (over: Partial<State["history"][number]>): State["history"][number] => ({
  from: 5,
  to: 1,
  kind: "rolledback",
  by: "ann",
  reason: "promotion requested",
  at,
  ...over,
});

/** Asks for a move that is answered with `refusal`; afterwards the server shows these views, one after the other. */
async function move(refusal: Error, views: AdapterView[], signal = new AbortController().signal) {
  const said: string[] = [];
  const err = new Writable({
    write(chunk: Buffer, _encoding, done) {
      said.push(chunk.toString());
      done();
    },
  });
  const api = { getAdapter: () => Promise.resolve(views.length > 1 ? (views.shift() as AdapterView) : (views[0] as AdapterView)) };
  const moved = await moveAlias(api, "pirate", () => Promise.reject(refusal), { err, signal });
  return { moved, said };
}
const loading = new ApiError("version_loading", "Version 1 of pirate was retired.", { status: 503 });

it("waits until a version that was retired is loaded again and promoted, and says so", async () => {
  const { moved, said } = await move(loading, [
    view({ awaiting }),
    view({ alias: 1, awaiting: null, history: [line({}), line({ kind: "retired", to: 2 })] }),
  ]);
  expect(moved.adapter.alias).toBe(1);
  expect(said.join("")).toContain("Version 1 of pirate was retired.");
});

it("says why a move was given up", async () => {
  const given = line({ kind: "not-moved", code: "VERSION_NOT_PROVEN", reason: "version 1 was proven on no ready replica" });
  await expect(move(loading, [view({ awaiting: null, history: [given] })])).rejects.toMatchObject({
    code: "VERSION_NOT_PROVEN",
    message: "the alias did not move: version 1 was proven on no ready replica.",
  });
});

it("passes on any other refusal, and ends with the terminal", async () => {
  const other = new ApiError("VERSION_REFUSED", "no", { status: 409 });
  await expect(move(other, [view({})])).rejects.toBe(other);
  await expect(move(loading, [view({ awaiting })], AbortSignal.abort())).rejects.toMatchObject({ code: "INTERRUPTED", exitCode: 130 });
});
