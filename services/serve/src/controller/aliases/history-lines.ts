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

/** Number of the last line, from 1; what was written before lines had numbers has all of them. */
export const lastLine = ({ history }: AdapterState): number => history.at(-1)?.n ?? history.length;

export const withLine = (state: AdapterState, line: Line): AdapterState => ({
  ...state,
  history: [...state.history, { ...line, n: lastLine(state) + 1 }].slice(-linesKept),
});

const moves: ReadonlySet<string> = new Set(moveKinds);
/** Whether a line is about the alias or its canary; the others are about what is loaded. */
export const isMove = ({ kind }: Pick<Line, "kind">): boolean => moves.has(kind);
