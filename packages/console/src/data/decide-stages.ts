/** Pure: how far a run is, stage by stage. */
import type { DatasetState, RunState } from "@loraline/contracts";

const stageNames = ["read", "tokenize", "wait", "train", "serve"] as const;
export type StageName = (typeof stageNames)[number];

interface Stage {
  name: StageName;
  state: "done" | "active" | "todo" | "failed" | "paused";
  /** Milliseconds since the epoch; null: not begun, or not known. */
  from: number | null;
  /** null: not ended. */
  to: number | null;
}

const at = (time: string | null | undefined): number | null => (time === null || time === undefined ? null : Date.parse(time));

/** @param dataset - undefined where it is not known (any more). */
export function decideStages(run: RunState, dataset: Pick<DatasetState, "receivedAt" | "settledAt"> | undefined): Stage[] {
  const ends: Record<StageName, number | null> = {
    read:
      run.tokens === null && dataset !== undefined ? at(dataset.settledAt) : (at(dataset?.settledAt) ?? at(run.tokens && run.requestedAt)),
    tokenize: at(run.tokens?.at),
    wait: at(run.startedAt),
    train: at(run.trained?.at),
    serve: run.phase === "served" ? at(run.served?.at) : null,
  };
  const begins: Record<StageName, number | null> = {
    read: at(dataset?.receivedAt),
    tokenize: later(ends.read, at(run.requestedAt)),
    wait: ends.tokenize,
    train: ends.wait,
    serve: ends.train,
  };
  const isOver = run.finishedAt !== null;
  let isOpen = false;
  return stageNames.map((name) => {
    const [from, to] = [begins[name], ends[name]];
    if (!isOpen && to !== null) return { name, state: "done", from, to };
    if (isOpen) return { name, state: "todo", from: null, to: null };
    isOpen = true;
    if (isOver) return { name, state: "failed", from, to: at(run.finishedAt) };
    return { name, state: run.paused === true ? "paused" : "active", from, to: null };
  });
}

const later = (a: number | null, b: number | null): number | null => (a === null || b === null ? (a ?? b) : Math.max(a, b));
