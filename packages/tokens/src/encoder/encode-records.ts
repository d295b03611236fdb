/** Encodes records to sequences of ids with their labels, in batches. */
import type { Digest, Message, PictureEntry, ProbePrompt, Rec } from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime/errors";
import { comparisonEncoder } from "./encode-comparisons.ts";
import { type Examples, isSided, preferenceEncoder } from "./encode-preferences.ts";
import { type EncodedPieces, encodePieces, ignored, type Known, type Sequence } from "./encode-pieces.ts";
import type { Base } from "./load-base.ts";
import { drop, type Encoded, type Reason, type RecordEncoder, type TokenizeSpec } from "./record-encoder.ts";
import { partsOf } from "../templates/content-parts.ts";
import { append, createSplit, type Piece } from "../templates/pieces.ts";
import { spellPicture, type Vision } from "../pictures/vision.ts";
import { type ChatTemplate, recogniseTemplate } from "../templates/recognise-template.ts";
import type { Conversation, Sample } from "../templates/render-jinja.ts";
import { renderSeed, seedPrompt, seedSystem } from "../templates/render-seed.ts";

/**
 * @param examples - what the run's method trains.
 * @throws PermanentError (also from `encode`) TEMPLATE_MISSING, TEMPLATE_UNSUPPORTED, PAD_TOKEN_MISSING, EOS_TOKEN_MISSING
 */
export function createRecordEncoder(base: Base, spec: TokenizeSpec, examples: Examples = "answers"): RecordEncoder {
  const single = (of: TokenizeSpec): RecordEncoder => (of.template === "seed" ? seedEncoder(base, of) : templateEncoder(base, of));
  if (examples === "answers") return single(spec);
  const whole = single({ ...spec, too_long: "drop", max_length: uncut });
  return isSided(examples) ? preferenceEncoder(whole, examples, spec.max_length) : comparisonEncoder(whole, examples, spec.max_length);
}

/** Longer than what fits into a row is only judged by who compares it, so that nothing is cut before. */
const uncut = 2 ** 30;

/** Kinds of records that supervised fine-tuning cannot use, and the methods that can. */
const notTrained: Readonly<Partial<Record<Rec["kind"], readonly [what: string, methods: string]>>> = {
  preference: ["a preference (chosen and rejected)", "dpo, orpo or simpo (or kto)"],
  ranked: ["a ranking of answers", "dpo, orpo or simpo (or kto)"],
  unpaired: ["an answer that is labelled good or bad", "kto"],
};

/** @returns why no template can train a record; undefined: it can be trained. */
function judgeKind({ kind, media }: Rec, { ref, vision }: Base): Encoded | undefined {
  const found = notTrained[kind];
  if (found !== undefined) {
    const [what, methods] = found;
    const message = `the record is ${what}, which supervised fine-tuning does not train. Set method to ${methods}, or give rows with one answer each.`;
    return drop("KIND_NOT_TRAINED", message);
  }
  if (media !== undefined && media.length > 0) {
    const other = media.find(({ type }) => type !== "image");
    if (vision === undefined || other !== undefined) {
      const reads =
        vision === undefined ? "reads text only here (docs/bases.md has the families that learn from pictures)" : "reads texts and images";
      return drop(
        "BASE_CANNOT_SEE",
        `the record shows ${article(other?.type ?? "image")}, and base "${ref.name}" ${reads}. Use text-only rows.`,
      );
    }
    const missing = media.find(({ media_type }) => media_type === undefined);
    if (missing !== undefined) {
      const where = missing.ref.length > 200 ? `${missing.ref.slice(0, 200)}…` : missing.ref;
      return drop(
        "PICTURE_NOT_FETCHED",
        `its picture ${where} was not fetched: the server does so when the dataset is uploaded. Upload the dataset again if it was uploaded before Loraline took pictures.`,
      );
    }
  }
  return undefined;
}
const article = (noun: string): string => (/^[aeiou]/.test(noun) ? `an ${noun}` : `a ${noun}`);

/* --- template `seed` --- */

function seedEncoder(base: Base, spec: TokenizeSpec): RecordEncoder {
  const system = spec.system ?? seedSystem;
  const pad = idOf(base, "pad");
  return {
    async encode(records) {
      const rows = records.map(
        (record) => judgeKind(record, base) ?? (isShowing(record) ? undefined : renderSeed(record, system)) ?? unsuitable(record),
      );
      const texts = rows.flatMap((row) => ("prompt" in row ? [row.prompt, row.answer] : []));
      const encoded = (await base.encoder.encode(texts, "raw")).values();
      return rows.map((row) => {
        if (!("prompt" in row)) return row;
        const prompt = encoded.next().value as Int32Array;
        const answer = encoded.next().value as Int32Array;
        const length = prompt.length + answer.length + 1;
        const ids = new Int32Array(length);
        ids.set(prompt);
        ids.set(answer, prompt.length);
        ids[length - 1] = pad;
        const labels = ids.slice().fill(ignored, 0, prompt.length);
        const sample = { ids: ids.slice(0, spec.max_length), labels: labels.slice(0, spec.max_length) };
        // process_func keeps such a row too, and every row must equal its row.
        return { samples: [sample], dropped: null, notes: isTrained(sample) ? [] : [nothingTrained(length)] };
      });
    },
    async ask(question) {
      return (await base.encoder.encode([seedPrompt(question, system)], "raw"))[0];
    },
    family: null,
  };
}

const isShowing = ({ media }: Rec): boolean => media !== undefined && media.length > 0;

function unsuitable(record: Rec): Encoded {
  const { kind } = record;
  const what = isShowing(record) ? "one with pictures" : kind === "chat" ? "more than one question and one answer" : `a ${kind}`;
  return drop(
    "SEED_UNSUITABLE",
    `the template seed trains one question and one answer; this record is ${what}. Use tokenize.template: base.`,
  );
}

/* --- template `base`: the base's own --- */

/** A record in work: dropped already, or samples that are encoded and then judged. */
interface Draft {
  readonly record: Rec;
  readonly samples: readonly (Sample & Pick<Sequence, "pictures" | "question">)[];
  readonly notes: readonly Omit<Reason, "tokens">[];
}

function templateEncoder(base: Base, spec: TokenizeSpec): RecordEncoder {
  const { encoder } = base;
  // Only conversations need a template, so completions can be trained on bases without one.
  let recognised: Promise<ChatTemplate> | undefined;
  let family: string | null = null;
  const template = async (): Promise<ChatTemplate> => {
    const found = await (recognised ??= recogniseTemplate(base));
    family = found.family;
    return found;
  };
  const known: Known = new Map();

  const draft = async (record: Rec): Promise<Draft | Encoded> => {
    const refused = judgeKind(record, base);
    if (refused !== undefined) return refused;
    if (record.kind === "pretokenized") return pretokenized(record, encoder.vocabSize, spec);
    if (record.kind === "chat") {
      const rendered = (await template()).render(conversationOf(record, spec));
      if ("code" in rendered) return drop(rendered.code, rendered.message);
      return isShowing(record) && base.vision !== undefined ? show(record, base.vision, rendered) : { record, ...rendered };
    }
    // Raw text has no template. The end-of-text token is trained, so that the model learns to stop.
    const { prompt = "", completion = record.text ?? "" } = record;
    const pieces: Piece[] = [];
    if (prompt !== "") pieces.push({ text: prompt, trained: false });
    if (completion !== "") pieces.push({ text: completion, trained: true });
    pieces.push({ control: base.special.eos ?? "", id: idOf(base, "eos"), trained: completion !== "" });
    return { record, samples: [{ pieces, end: 0, trained: [] }], notes: [] };
  };

  const split = createSplit(encoder.controls);
  /** Puts the tokens of a record's pictures in the places that the template gave them. */
  const show = (record: Rec, vision: Vision, { samples, notes }: Pick<Draft, "samples" | "notes">): Draft | Encoded => {
    const { messages } = conversationOf(record, spec);
    const isPlace = (piece: Piece): boolean => "control" in piece && piece.control === vision.token;
    const shown: Draft["samples"][number][] = [];
    for (const sample of samples) {
      const pictures = messages
        .slice(0, sample.end)
        .flatMap((message) => partsOf(message).flatMap((part) => ("picture" in part ? entryOf(record, part.picture) : [])));
      const waiting = pictures.values();
      const pieces: Piece[] = [];
      let placed = 0;
      for (const piece of sample.pieces) {
        if (isPlace(piece) && piece.trained) {
          const advice = "Put it into the question, or set `train: false` for that turn.";
          return drop("PICTURE_IN_ANSWER", `a trained answer shows a picture, which no model here can write. ${advice}`);
        }
        const picture = isPlace(piece) ? waiting.next().value : undefined;
        if (picture !== undefined) placed++;
        if (picture === undefined) append(pieces, piece);
        else split(spellPicture(vision, picture), false, pieces);
      }
      const places = sample.pieces.filter(isPlace).length;
      if (places !== pictures.length || placed !== places) {
        const message = `the base's chat template shows ${places} of the record's ${pictures.length} pictures. Use a base whose template shows pictures.`;
        return drop("TEMPLATE_HIDES_PICTURES", message);
      }
      const last = sample.trained.at(-1);
      shown.push({
        ...sample,
        pieces,
        pictures,
        question: () => (last === undefined ? undefined : questionOf(record, messages.slice(0, last))),
      });
    }
    return { record, samples: shown, notes };
  };

  const finish = async ({ record, samples, notes }: Draft, encoded: readonly EncodedPieces[]): Promise<Encoded> => {
    const kept: Sequence[] = [];
    const reasons: Reason[] = notes.map((note) => ({ ...note, tokens: encoded[0]?.ids.length ?? 0 }));
    for (const [index, sample] of samples.entries()) {
      const { joins, ...whole } = withPrefix(encoded[index] as EncodedPieces, record);
      const fitted = whole.ids.length <= spec.max_length ? { sequences: [whole], reason: null } : await shorten(record, sample, whole);
      const { pictures, question } = sample;
      const seen = pictures === undefined ? {} : { pictures, ...(question !== undefined && { question }) };
      kept.push(...fitted.sequences.filter(startUntrained).map((sequence) => ({ ...sequence, ...seen })));
      if (fitted.sequences.length > 0 && !fitted.sequences.some(isTrained)) reasons.push(nothingTrained(whole.ids.length));
      if (fitted.reason !== null) reasons.push(fitted.reason);
      if (joins && fitted.sequences.length > 0) reasons.push(joined(whole.ids.length));
    }
    const told = [...new Map(reasons.map((reason) => [reason.code, reason])).values()];
    if (kept.length > 0) return { samples: kept, dropped: null, notes: told };
    return {
      samples: [],
      dropped: told.find(({ code }) => code === "TOO_LONG") ?? told.find(({ code }) => code === "NO_SUPERVISED") ?? null,
      notes: [],
    };
  };

  /** Tokens that the tokenizer puts before raw texts belong to the prompt. Templates write such tokens themselves. */
  const withPrefix = (encoded: EncodedPieces, { kind }: Rec): EncodedPieces => {
    if (kind === "chat" || encoder.prefix.length === 0) return encoded;
    const { length } = encoder.prefix;
    const ids = new Int32Array(length + encoded.ids.length);
    const labels = new Int32Array(ids.length).fill(ignored);
    ids.set(encoder.prefix);
    ids.set(encoded.ids, length);
    labels.set(encoded.labels, length);
    return { ids, labels, joins: encoded.joins };
  };

  /** Applies `too_long`. `reason` says what was left out or, if no sequence remains, why. */
  const shorten = async (
    record: Rec,
    sample: Draft["samples"][number],
    whole: Sequence,
  ): Promise<{ sequences: Sequence[]; reason: Reason | null }> => {
    const total = whole.ids.length;
    const { max_length, too_long } = spec;
    const remedy = record.kind === "text" ? "split" : "trim-prompt";
    const message = `${total} tokens; tokenize.max_length is ${max_length}. Raise it, or set tokenize.too_long to ${remedy}.`;
    const tooLong = { sequences: [], reason: { code: "TOO_LONG", message, tokens: total } };
    const trimmed = (sequence: Sequence, what: string) => ({
      sequences: [sequence],
      reason: { code: "PROMPT_TRIMMED", message: what, tokens: total - sequence.ids.length },
    });

    if (record.kind === "text" && too_long === "split") {
      const sequences: Sequence[] = [];
      for (let at = 0; at < total; at += max_length) {
        sequences.push({ ids: whole.ids.slice(at, at + max_length), labels: whole.labels.slice(at, at + max_length) });
      }
      // In a last part of one token nothing would predict that token.
      const parts = sequences.filter(({ ids }) => ids.length > 1);
      return {
        sequences: parts,
        reason: { code: "TEXT_SPLIT", message: `the text was split into ${parts.length} sequences`, tokens: total },
      };
    }
    if (sample.pictures !== undefined) {
      const own = `${total} tokens, those of its ${sample.pictures.length === 1 ? "picture" : `${sample.pictures.length} pictures`} included; tokenize.max_length is ${max_length}. Raise it.`;
      return { sequences: [], reason: { code: "TOO_LONG", message: own, tokens: total } };
    }
    if (too_long !== "trim-prompt") return tooLong;
    if (record.kind !== "chat") {
      const cut = total - max_length;
      const prompt = whole.labels.findIndex((label) => label !== ignored) - encoder.prefix.length;
      // At least one token of the prompt stays, because a token must come before the first trained one.
      if (cut >= prompt) return tooLong;
      const keep = (values: Int32Array): Int32Array => {
        const left = values.slice(cut);
        left.set(values.subarray(0, encoder.prefix.length));
        return left;
      };
      return trimmed({ ids: keep(whole.ids), labels: keep(whole.labels) }, `${cut} tokens of the prompt's beginning were left out`);
    }

    // The oldest turns are removed first, never the system prompt, and the rest begins with a question. Bisection finds the most turns that fit.
    const { messages, tools } = conversationOf(record, spec);
    const turns = messages
      .slice(0, sample.end)
      .map((message, index): Message =>
        message.role === "assistant" && !sample.trained.includes(index) ? { ...message, train: false } : message,
      );
    const system = turns[0]?.role === "system" ? turns.slice(0, 1) : [];
    const answer = sample.trained.at(-1) ?? -1;
    const starts = turns.flatMap(({ role }, index) => (role === "user" && index > system.length && index < answer ? [index] : []));
    const found = await template();
    let best: { sequence: Sequence; left: number } | undefined;
    for (let [low, high] = [0, starts.length - 1]; low <= high;) {
      const middle = (low + high) >> 1;
      const start = starts[middle] as number;
      const rendered = found.render({ messages: [...system, ...turns.slice(start)], tools });
      if ("code" in rendered || rendered.samples.length !== 1) break;
      const [encoded] = await encodePieces(base, [rendered.samples[0]?.pieces ?? []], known);
      if (encoded !== undefined && encoded.ids.length <= max_length) {
        best = { sequence: { ids: encoded.ids, labels: encoded.labels }, left: start - system.length };
        high = middle - 1;
      } else low = middle + 1;
    }
    return best === undefined ? tooLong : trimmed(best.sequence, `the ${best.left} oldest turns were left out`);
  };

  return {
    async encode(records) {
      const drafts: (Draft | Encoded)[] = [];
      for (const record of records) drafts.push(await draft(record));
      const pieces = drafts.flatMap((one) => ("record" in one ? one.samples.map((sample) => sample.pieces) : []));
      const encoded = await encodePieces(base, pieces, known);
      const results: Encoded[] = [];
      let at = 0;
      for (const one of drafts) {
        if (!("record" in one)) results.push(one);
        else {
          results.push(await finish(one, encoded.slice(at, at + one.samples.length)));
          at += one.samples.length;
        }
      }
      return results;
    },
    async ask(question) {
      if (recognised === undefined) return undefined;
      const found = await recognised;
      const pieces = found.prompt({ messages: withSystem([{ role: "user", content: question }], spec.system) });
      return (await encodePieces(base, [pieces], known))[0]?.ids;
    },
    get family() {
      return family;
    },
  };
}

const conversationOf = ({ messages = [], tools }: Rec, { system }: TokenizeSpec): Conversation => ({
  messages: withSystem(messages, system),
  tools,
});

/** @returns what a record's media is, at an index; nothing where it is no picture. */
function entryOf({ media }: Rec, at: number): PictureEntry[] {
  const { ref, bytes, media_type, width, height } = media?.[at] ?? {};
  if (ref === undefined || bytes === undefined || media_type === undefined || width === undefined || height === undefined) return [];
  return [{ digest: ref as Digest, bytes, media_type, width, height }];
}

/** @returns messages as an engine is asked them; undefined: they hold more than texts and pictures. */
function questionOf(record: Rec, messages: readonly Message[]): ProbePrompt["messages"] {
  if (
    record.tools !== undefined ||
    messages.some((one) => one.tool_calls !== undefined || one.role === "tool" || one.reasoning !== undefined || one.name !== undefined)
  )
    return undefined;
  return messages.map((message) => ({
    role: message.role,
    content: partsOf(message).map((part) =>
      "text" in part ? { type: "text", text: part.text } : { type: "image", digest: record.media?.[part.picture]?.ref as Digest },
    ),
  }));
}

/** Adds the run's system prompt to a record without one. The template's own default prompt appears when the text is rendered. */
const withSystem = (messages: readonly Message[], system: string | undefined): readonly Message[] =>
  system === undefined || messages[0]?.role === "system" ? messages : [{ role: "system", content: system }, ...messages];

/** Checks a row that is tokenized already. It is used unchanged if it fits this base. */
function pretokenized({ input_ids = [], labels = input_ids }: Rec, vocabSize: number, { max_length }: TokenizeSpec): Encoded {
  const tokens = input_ids.length;
  const foreign = input_ids.findIndex((id) => id >= vocabSize);
  if (foreign !== -1) {
    const message = `input_ids[${foreign}] is ${input_ids[foreign]}, but the base's tokenizer has ids below ${vocabSize}. The row was made for another base.`;
    return drop("IDS_INVALID", message, tokens);
  }
  const wrong = labels.findIndex((label, index) => label !== ignored && label !== input_ids[index]);
  if (wrong !== -1 || labels.length !== tokens) {
    const message =
      labels.length === tokens
        ? `labels[${wrong}] is ${labels[wrong]}; it must be ${ignored} or input_ids[${wrong}], which is ${input_ids[wrong]}.`
        : `there are ${labels.length} labels for ${tokens} input_ids. Give one each.`;
    return drop("IDS_INVALID", message, tokens);
  }
  if (tokens > max_length) {
    return drop("TOO_LONG", `${tokens} tokens; tokenize.max_length is ${max_length}. Raise it, or cut the row yourself.`, tokens);
  }
  const sample = { ids: Int32Array.from(input_ids), labels: Int32Array.from(labels) };
  return startUntrained(sample)
    ? { samples: [sample], dropped: null, notes: [] }
    : { samples: [], dropped: nothingTrained(tokens), notes: [] };
}

/**
 * Removes the first label: no token predicts the first one, and in a packed row the sequence before would.
 * @returns whether a trained token is left. The trainer would not notice a sequence without one: its loss is zero.
 */
function startUntrained(sample: Sequence): boolean {
  if (sample.labels.length > 0) sample.labels[0] = ignored;
  return isTrained(sample);
}

const isTrained = ({ labels }: Sequence): boolean => labels.some((label) => label !== ignored);
const nothingTrained = (tokens: number): Reason => ({
  code: "NO_SUPERVISED",
  message: `none of the ${tokens} tokens is trained on: the answer is empty, or it lies beyond tokenize.max_length`,
  tokens,
});
const joined = (tokens: number): Reason => ({
  code: "ANSWER_JOINS_PROMPT",
  message:
    "read together with the prompt, the beginning of the answer is other tokens than what the model will write; it is trained as the model writes it",
  tokens,
});

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
