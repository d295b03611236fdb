/** What becomes of records: sequences of ids with their labels, or the reason why there are none. */
import type { Rec, RunSpec } from "@loraline/contracts";
import type { Sequence } from "./encode-pieces.ts";

export type TokenizeSpec = RunSpec["tokenize"];

export interface Reason {
  readonly code: string;
  readonly message: string;
  readonly tokens: number;
}
/** The result for one record. */
export interface Encoded {
  /** Usually one sequence. A template that removes thoughts from earlier turns gives one for each trained turn; a dropped record gives none. */
  readonly samples: readonly Sequence[];
  /** Why there are no samples; null exactly when there are some. */
  readonly dropped: Reason | null;
  /** Notes about a record that is kept; each code at most once. */
  readonly notes: readonly Reason[];
}

export interface RecordEncoder {
  /** One result per record, in their order. */
  encode(records: readonly Rec[]): Promise<Encoded[]>;
  /** @returns the ids of a question as the server presents it to the model; undefined when the records are not conversations. */
  ask(question: string): Promise<Int32Array | undefined>;
  /** The recognised family of the base's template; null as long as no record needed it. */
  readonly family: string | null;
}

export const drop = (code: string, message: string, tokens = 0): Encoded => ({
  samples: [],
  dropped: { code, message, tokens },
  notes: [],
});
