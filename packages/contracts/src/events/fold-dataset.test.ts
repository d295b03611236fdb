import { describe, expect, it } from "vitest";
import { type DatasetEvent, foldDataset } from "./fold-dataset.ts";
import { datasetState, type DatasetState } from "../state.ts";

const blob = { kind: "raw", digest: `sha256:${"a".repeat(64)}`, size: 3 } as const;
const at = { tenant: "acme", id: "01JCZ8Z0000000000000000000" };
const seen = (seq: number, type: string, data: unknown): DatasetEvent =>
  ({ type, data, at, time: "2026-11-24T18:00:00.000Z", seq, trace: null }) as unknown as DatasetEvent;
const asked = (seq: number) =>
  seen(seq, "dataset.import-requested.v1", {
    source: { url: "https://a.test/b.jsonl?token=secret" },
    mapping: { columns: { question: "b" } },
  });
const fetched = (seq: number) => seen(seq, "dataset.received.v1", { blob, filename: "b.jsonl", parts: [{ blob, filename: "c.jsonl" }] });
const rejected = (seq: number) => seen(seq, "dataset.rejected.v1", { code: "FETCH_REFUSED", message: "no", rejections: 0 });

function fold(...events: DatasetEvent[]): DatasetState | undefined {
  let state: DatasetState | undefined;
  for (const event of events) state = foldDataset(state, event);
  // What is kept must be readable again.
  return state === undefined ? undefined : datasetState.parse(state);
}

describe("an imported dataset", () => {
  it("is importing until its file is there, and then like an upload", () => {
    expect(fold(asked(1))).toMatchObject({
      status: "importing",
      blob: null,
      parts: [],
      filename: "https://a.test/b.jsonl",
      mapping: { columns: { question: "b" } },
    });
    expect(fold(asked(1), fetched(2))).toMatchObject({
      status: "received",
      blob,
      filename: "b.jsonl",
      parts: [{ filename: "c.jsonl" }],
      source: { url: "https://a.test/b.jsonl?token=secret" },
    });
    expect(fold(fetched(1))).toMatchObject({ status: "received", source: null });
  });

  it("says why it could not be fetched", () => {
    expect(fold(asked(1), rejected(2))).toMatchObject({ status: "rejected", blob: null, error: { code: "FETCH_REFUSED" } });
  });

  it("says what it waits for, until it goes on or is settled", () => {
    const reason = { code: "STORE_REFUSED", message: "Access Denied" };
    const waits = (seq: number, why: object | null) => seen(seq, "dataset.waiting.v1", { stage: "ingest", reason: why });
    expect(fold(asked(1), waits(2, reason))).toMatchObject({ status: "importing", waiting: reason });
    expect(fold(asked(1), waits(2, reason), fetched(3), waits(4, null))).toMatchObject({ status: "received", waiting: null });
    expect(fold(asked(1), waits(2, reason), rejected(3), waits(4, reason))).toMatchObject({ status: "rejected", waiting: null });
  });

  it("says how far fetching and reading are, and nothing of it once they are done", () => {
    const far = (stage: string, done: number, second: number): DatasetEvent => ({
      ...seen(1, "dataset.progress.v1", { stage, done, total: 9 }),
      time: `2026-11-24T18:00:0${second}.000Z`,
    });
    const told = (...events: DatasetEvent[]) => fold(...events)?.progress;
    expect(told(asked(1), far("fetch", 3, 1))).toMatchObject({ stage: "fetch", done: 3, total: 9 });
    expect(told(asked(1), far("fetch", 5, 2), far("fetch", 3, 1))).toMatchObject({ done: 5 });
    expect(told(asked(1), far("fetch", 3, 1), fetched(2), far("fetch", 9, 2))).toBeUndefined();
    expect(told(asked(1), fetched(2), far("read", 3, 3))).toMatchObject({ stage: "read", done: 3 });
    expect(told(asked(1), far("fetch", 3, 1), rejected(2), far("fetch", 4, 2))).toBeUndefined();
    expect(fold(far("read", 3, 1))).toBeUndefined();
  });

  it("is the same whatever comes twice or late", () => {
    const once = fold(asked(1), fetched(2));
    expect(fold(asked(1), fetched(2), asked(1), fetched(2))).toEqual(once);
    expect(fold(asked(1), seen(2, "dataset.deleted.v1", {}), fetched(3))).toMatchObject({ status: "deleted", blob: null });
    expect(fold(rejected(1))).toBeUndefined();
  });
});
