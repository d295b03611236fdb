/** Why so few records of a dataset can be trained on, and what helps: the same for a run and for a file that is only looked at. Pure. */
import { explainCode, type MethodType, type Problem, type RunSpec } from "@loraline/contracts";

/** Settings of a run by which it is judged whether enough is left. */
interface TooFewInput {
  readonly records: number;
  /** Records, or sequences of them, that can be trained on. */
  readonly usable: number;
  /** Code to how many records were left out for it. */
  readonly dropped: ReadonlyMap<string, number>;
  readonly minRecords: number;
  readonly tokenize: Pick<RunSpec["tokenize"], "max_length">;
  readonly method: MethodType;
  /** Format to how many records have it. */
  readonly formats: Readonly<Record<string, number>>;
  /** What was rejected when the file was read, in a sentence; absent: nothing. */
  readonly rejected?: string;
}

interface Remedy {
  readonly code: string;
  readonly help: string;
  readonly param: string;
}

/** What helps where a method cannot train the kind of records. */
const otherKinds = {
  answers:
    "They are preferences between answers, which supervised fine-tuning does not train. Set method to dpo, orpo, simpo or kto, or give rows with one answer each.",
  pairs:
    "This method compares answers: pairs of a chosen and a rejected one, or lists with scores. Set method to supervised for single answers, to kto for labelled ones.",
  labels: "This method learns from answers that are labelled good or bad, or compared. Set method to supervised for single answers.",
} as const;

/** What helps against each reason: here where that depends on the run, else as the table of codes has it. */
function remedyOf(reason: string | undefined, { tokenize: { max_length }, method, records, formats }: TooFewInput): Remedy {
  const trains = method === "kto" ? "labels" : method === "supervised" || method === "import" ? "answers" : "pairs";
  const few = (help: string, param = "dataset"): Remedy => ({ code: "TOO_FEW_RECORDS", help, param });
  switch (reason) {
    case "KIND_NOT_TRAINED":
      return {
        code: "KIND_NOT_TRAINED",
        help: otherKinds[trains],
        param: trains === "answers" ? "dataset" : "method",
      };
    case "BASE_CANNOT_SEE":
      return {
        code: "BASE_CANNOT_SEE",
        help: "They show images, and the base reads text only, or its family's pictures are not known here. Give rows of text only, or take a base that is trained on pictures.",
        param: "dataset",
      };
    case "NO_SUPERVISED":
      return { code: "NO_SUPERVISED_TOKENS", help: "Raise tokenize.max_length.", param: "tokenize.max_length" };
    case "TOO_LONG":
      return few(
        `Raise tokenize.max_length (now ${max_length})${trains === "answers" ? ", or set tokenize.too_long to trim-prompt (of raw text: split)" : ""}.`,
        "tokenize.max_length",
      );
    case "RANKING_UNKNOWN":
      return few("Say which answers are better, with scores, ranks or a preferred_response.");
    case "IN_VALIDATION":
    case "NEARLY_IN_VALIDATION":
      return few(
        "They stand in the validation file too, which would then measure memory: use another validation file, or set validation_overlap to keep.",
        "validation_overlap",
      );
    case "EXACT_DUPLICATE":
      return few("They repeat other records: add records that say something else, or set dedupe to none.", "dedupe");
    case "NEAR_DUPLICATE":
      return few("They nearly repeat other records: add records that say something else, or set dedupe to exact.", "dedupe");
    case "SEED_UNSUITABLE":
      return few("The template seed trains one question and one answer: set tokenize.template to base.", "tokenize.template");
    case undefined:
      return few(
        formats["text"] === records
          ? "Add records, lower min_records, or make each paragraph of a document a record: mapping `text_rows: paragraph`."
          : "Add records, or lower min_records.",
      );
    default: {
      const { meaning, remedy } = explainCode(reason) ?? { meaning: "", remedy: "Give other rows." };
      return { code: reason, help: `${meaning} ${remedy}`.trim(), param: "dataset" };
    }
  }
}

/** The remedy is that of the reason which most records were left out for. */
export function explainTooFew(input: TooFewInput): Problem {
  const { records, usable, dropped, minRecords, rejected } = input;
  const [worst] = [...dropped].toSorted((a, b) => b[1] - a[1]);
  const { code, help, param } = remedyOf(worst?.[0], input);
  // With a code of its own a reason explains a run that has nothing left; where something is left there are too few.
  const isAll = usable === 0 && dropped.size === 1;
  const nothing = isAll && code === "NO_SUPERVISED_TOKENS" ? "no token would be trained on. " : "";
  let message = `${nothing}${usable} of the ${records} records can be trained on, and min_records is ${minRecords}.`;
  if (dropped.size > 0) message += ` Dropped: ${listed(dropped)}.`;
  if (rejected !== undefined) message += ` ${rejected}`;
  return { code: isAll ? code : "TOO_FEW_RECORDS", message: `${message} ${help}`, param };
}

export const listed = (reasons: ReadonlyMap<string, number>): string => [...reasons].map(([code, count]) => `${code} ${count}`).join(", ");
