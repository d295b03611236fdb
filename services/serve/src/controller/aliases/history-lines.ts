/** Pure: lines of an adapter's history, which are numbered and never change. */
import { type AdapterState, moveKinds } from "@loraline/contracts";

export type Line = AdapterState["history"][number];

/** Who did it, why and when. */
export interface Cause {
  by: string | null;
  reason: string;
  /** ISO 8601. */
  at: string;
  /** Sequence of the command's message. */
  command?: number;
}

/** Lines that are kept: an entry must not grow for ever. */
const linesKept = 300;
/** More than so many about what is loaded go first: anybody who may chat can cause them, and moves must not go for them. */
const loadLinesKept = 100;

/** Number of the last line, from 1; what was written before lines had numbers has all of them. */
export const lastLine = ({ history }: AdapterState): number => history.at(-1)?.n ?? history.length;

const moves: ReadonlySet<string> = new Set(moveKinds);
/** Whether a line is about the alias or its canary; the others are about what is loaded. */
export const isMove = ({ kind }: Pick<Line, "kind">): boolean => moves.has(kind);

export function withLine(state: AdapterState, line: Line): AdapterState {
  const history = [...state.history.map((known, index) => ({ ...known, n: known.n ?? index + 1 })), { ...line, n: lastLine(state) + 1 }];
  while (history.length > linesKept) {
    const ofLoading = history.filter((known) => !isMove(known)).length;
    history.splice(ofLoading > loadLinesKept ? history.findIndex((known) => !isMove(known)) : 0, 1);
  }
  return { ...state, history };
}
