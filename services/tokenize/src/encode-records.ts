/** Records to sequences of ids with their labels, a batch at a time. */
import type { Rec, RunSpec } from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime";
import type { Base } from "./load-base.ts";
import { recogniseTemplate } from "./recognise-template.ts";
import { type Chatml, generationPrompt, type Piece, renderChatml, type Turn, withSystem } from "./render-chatml.ts";
import { renderSeed, seedPrompt, seedSystem } from "./render-seed.ts";

/** Label of a token that is not trained on. */
export const ignored = -100;

export type TokenizeSpec = RunSpec["tokenize"];

export interface Sequence {
  readonly ids: Int32Array;
  /** As long as `ids`: the id where it is trained on, `ignored` elsewhere. The first one is always `ignored`. */
  readonly labels: Int32Array;
}
export interface Reason {
  readonly code: string;
  readonly message: string;
  readonly tokens: number;
}
/** What became of one record. */
export interface Encoded {
  /** Usually one. A template that strips thoughts from earlier turns gives one per trained turn; a dropped record gives none. */
  readonly samples: readonly Sequence[];
  /** Why there are no samples; null exactly when there are some. */
  readonly dropped: Reason | null;
  /** What is worth telling about a record that is kept; each code at most once. */
  readonly notes: readonly Reason[];
}

export interface RecordEncoder {
  /** One result per record, in their order. */
  encode(records: readonly Rec[]): Promise<Encoded[]>;
  /** Ids of a question as the server would present it; undefined when the records were not conversations. */
  ask(question: string): Promise<Int32Array | undefined>;
  /** What the base's template was recognised as; null as long as no record needed it. */
  readonly family: string | null;
}

/** @throws PermanentError (also from `encode`) TEMPLATE_MISSING, TEMPLATE_UNSUPPORTED, PAD_TOKEN_MISSING, EOS_TOKEN_MISSING */
export function createRecordEncoder(base: Base, spec: TokenizeSpec): RecordEncoder {
  return spec.profile === "seed" ? seedEncoder(base, spec) : templateEncoder(base, spec);
}

/* --- profile `seed` --- */

function seedEncoder(base: Base, spec: TokenizeSpec): RecordEncoder {
  const system = spec.system ?? seedSystem;
  const pad = idOf(base, "pad");
  return {
    async encode(records) {
      const rows = records.map((record) => renderSeed(record, system));
      const texts = rows.flatMap((row) => (row === undefined ? [] : [row.prompt, row.answer]));
      const encoded = (await base.encoder.encode(texts, "raw")).values();
      return rows.map((row, index) => {
        if (row === undefined) {
          const what = records[index]?.kind === "chat" ? "more than one question and one answer" : `a ${records[index]?.kind}`;
          const message = `the profile seed trains one question and one answer; this record is ${what}. Use the profile chatml.`;
          return drop("SEED_UNSUITABLE", message);
        }
        const prompt = encoded.next().value as Int32Array;
        const answer = encoded.next().value as Int32Array;
        const ids = Int32Array.of(...prompt, ...answer, pad);
        const labels = ids.slice().fill(ignored, 0, prompt.length);
        const sample = { ids: ids.slice(0, spec.max_length), labels: labels.slice(0, spec.max_length) };
        // process_func keeps such a row too, and every row is to equal its.
        const notes = isTrained(sample) ? [] : [nothingTrained(ids.length)];
        return { samples: [sample], dropped: null, notes };
      });
    },
    family: null,
    async ask(question) {
      return (await base.encoder.encode([seedPrompt(question, system)], "raw"))[0];
    },
  };
}

/* --- profile `chatml`: the base's own template --- */

/** A record as groups of pieces; in conversations, what `trim-prompt` may leave out, oldest first. */
interface Draft {
  readonly kind: "chat" | "completion";
  readonly turns: readonly Pick<Turn, "role" | "trained" | "pieces">[];
}

function templateEncoder(base: Base, spec: TokenizeSpec): RecordEncoder {
  // Only conversations need a template: completions train on bases that have none.
  let recognised: Promise<Chatml> | undefined;
  const template = (): Promise<Chatml> => (recognised ??= recogniseTemplate(base));
  const known = new Map<string, Int32Array>();

  const draft = async (record: Rec): Promise<Draft | Encoded> => {
    if (record.kind === "chat") {
      const messages = record.messages ?? [];
      if (record.tools !== undefined || messages.some((message) => message.tool_calls !== undefined || message.role === "tool")) {
        const message = "the record uses tools, which this version does not render. Remove them, or leave the record out.";
        return drop("TOOLS_UNSUPPORTED", message);
      }
      const chatml = await template();
      return { kind: "chat", turns: renderChatml(withSystem(messages, chatml, spec.system), chatml) };
    }
    // Raw, without a template; the end of the text is trained, so that the model learns to stop.
    const { prompt = "", completion = record.text ?? "" } = record;
    const before = [...base.encoder.prefix].map((token): Piece => ({ token, trained: false }));
    return {
      kind: "completion",
      turns: [
        { role: "user", trained: false, pieces: [...before, { text: prompt, trained: false }] },
        {
          role: "assistant",
          trained: true,
          pieces: [
            { text: completion, trained: true },
            { token: idOf(base, "eos"), trained: true },
          ],
        },
      ],
    };
  };

  return {
    async encode(records) {
      const drafts: (Draft | Encoded)[] = [];
      for (const record of records) drafts.push(await draft(record));
      const pieces = drafts.flatMap((one) => ("turns" in one ? one.turns.flatMap((turn) => turn.pieces) : []));
      await learn(base, known, pieces);
      return drafts.map((one) => ("turns" in one ? fit(one, spec, known) : one));
    },
    async ask(question) {
      if (recognised === undefined) return undefined;
      const chatml = await recognised;
      const turns = renderChatml(withSystem([{ role: "user", content: question }], chatml, spec.system), chatml);
      const pieces = [...turns.flatMap((turn) => turn.pieces), ...generationPrompt(chatml)];
      await learn(base, known, pieces);
      return Int32Array.from(pieces.flatMap((piece) => [...idsOf(piece, known)]));
    },
    get family() {
      return recognised === undefined ? null : "chatml";
    },
  };
}

/** Encodes the texts that are not known yet. What is kept of earlier batches are the short ones: headers, system prompts, common words. */
async function learn(base: Base, known: Map<string, Int32Array>, pieces: readonly Piece[]): Promise<void> {
  if (known.size > 4096) known.clear();
  else for (const text of known.keys()) if (text.length > 200) known.delete(text);
  const texts = [...new Set(pieces.flatMap((piece) => ("text" in piece && !known.has(piece.text) ? [piece.text] : [])))];
  const encoded = await base.encoder.encode(texts, "plain");
  for (const [index, text] of texts.entries()) known.set(text, encoded[index] as Int32Array);
}

const idsOf = (piece: Piece, known: ReadonlyMap<string, Int32Array>): ArrayLike<number> & Iterable<number> =>
  "token" in piece ? [piece.token] : (known.get(piece.text) as Int32Array);

/** Puts a draft together and makes it fit, or drops it. */
function fit(draft: Draft, spec: TokenizeSpec, known: ReadonlyMap<string, Int32Array>): Encoded {
  const sizes = draft.turns.map((turn) => turn.pieces.reduce((sum, piece) => sum + idsOf(piece, known).length, 0));
  const total = sizes.reduce((sum, size) => sum + size, 0);
  if (total <= spec.max_length) return judge(assemble(draft.turns, known), total);
  const tooLong = drop(
    "TOO_LONG",
    `${total} tokens; tokenize.max_length is ${spec.max_length}. Raise it, or set tokenize.too_long to trim-prompt.`,
    total,
  );
  if (spec.too_long === "drop") return tooLong;

  if (draft.kind === "completion") {
    const whole = assemble(draft.turns, known);
    const cut = total - spec.max_length;
    const prompt = sizes[0] ?? 0;
    // At least one token of the prompt stays: something has to come before the first trained token.
    if (cut >= prompt) return tooLong;
    const sequence = { ids: whole.ids.slice(cut), labels: whole.labels.slice(cut) };
    return judge(sequence, total, { tokens: cut, message: `${cut} tokens of the prompt's beginning were left out` });
  }

  const answer = draft.turns.findLastIndex((turn) => turn.trained);
  const question = draft.turns.findLastIndex((turn, index) => index < answer && turn.role === "user");
  const kept = new Set(draft.turns.keys());
  let size = total;
  // Oldest first, never the system prompt, and what stays begins with a user's turn.
  for (const [index, turn] of draft.turns.entries()) {
    if (index >= question) break;
    if (turn.role === "system") continue;
    if (size <= spec.max_length && turn.role === "user") break;
    kept.delete(index);
    size -= sizes[index] as number;
  }
  if (size > spec.max_length) return tooLong;
  const left = draft.turns.filter((_, index) => kept.has(index));
  const turns = draft.turns.length - left.length;
  return judge(assemble(left, known), total, { tokens: total - size, message: `the ${turns} oldest turns were left out` });
}

function assemble(turns: Draft["turns"], known: ReadonlyMap<string, Int32Array>): Sequence {
  const ids: number[] = [];
  const labels: number[] = [];
  for (const turn of turns) {
    for (const piece of turn.pieces) {
      for (const id of idsOf(piece, known)) {
        ids.push(id);
        labels.push(piece.trained ? id : ignored);
      }
    }
  }
  return { ids: Int32Array.from(ids), labels: Int32Array.from(labels) };
}

/** A sequence without anything to train on would pass through the trainer unseen, with a loss of zero (M10). */
function judge(sample: Sequence, total: number, trimmed?: { tokens: number; message: string }): Encoded {
  // No token predicts the first one; in a packed row its label would be predicted by the sequence before.
  if (sample.labels.length > 0) sample.labels[0] = ignored;
  if (!isTrained(sample)) return { samples: [], dropped: nothingTrained(total), notes: [] };
  return { samples: [sample], dropped: null, notes: trimmed === undefined ? [] : [{ code: "PROMPT_TRIMMED", ...trimmed }] };
}

const isTrained = ({ labels }: Sequence): boolean => labels.some((label) => label !== ignored);
const nothingTrained = (tokens: number): Reason => ({
  code: "NO_SUPERVISED",
  message: `none of the ${tokens} tokens is trained on: the answer is empty, or it lies beyond tokenize.max_length`,
  tokens,
});
const drop = (code: string, message: string, tokens = 0): Encoded => ({ samples: [], dropped: { code, message, tokens }, notes: [] });

function idOf({ ref, special, encoder }: Base, name: "pad" | "eos"): number {
  const token = special[name];
  const id = token === null ? undefined : encoder.addedId(token);
  if (id !== undefined) return id;
  throw new PermanentError(
    `${name.toUpperCase()}_TOKEN_MISSING`,
    `base "${ref.name}" names no ${name}_token in its tokenizer_config.json that its tokenizer knows, and sequences must end with one.`,
    { param: "base" },
  );
}
