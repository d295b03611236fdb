/** The result of tokenizing some records: sequences and reasons, in the records' order, in memory and as bytes. */
import { comparedText, signatureOf, signatureSize } from "@loraline/datasets";
import type { Digest, droppedRecord, PictureEntry, ProbePrompt, Rec } from "@loraline/contracts";
import type { z } from "zod";
import { ignored } from "./encode-pieces.ts";
import type { RecordEncoder } from "./record-encoder.ts";

export type DroppedRecord = z.infer<typeof droppedRecord>;

export interface EncodedChunk {
  readonly records: number;
  /** The recognised family of the base's template; null when no record needed it. */
  readonly family: string | null;
  /** For each sequence: the 32 bytes of its record's id, the record's index in the chunk, its line, tokens, trained tokens. */
  readonly digests: Uint8Array;
  readonly positions: Int32Array;
  readonly lines: Int32Array;
  readonly lengths: Int32Array;
  readonly supervised: Int32Array;
  /** For each sequence: 1 of a chosen or good answer, 0 of another one. Empty where nothing is compared. */
  readonly sides: Int32Array;
  /** For each sequence: its record's signature (`signatureOf`; zeros: too short to compare). Empty when signatures were not asked for. */
  readonly signatures: Uint32Array;
  /** For each sequence: its token ids, then its labels. */
  readonly data: Int32Array;
  /** Pictures that the sequences show, each once. */
  readonly pictures: readonly PictureEntry[];
  /** For each sequence that shows pictures, its place in the chunk and theirs in `pictures`, in the order of their tokens. */
  readonly shown: readonly Shown[];
  /** Questions with pictures, as conversations: of the first sequences that could be probes. */
  readonly pictureProbes: readonly PictureProbe[];
  /** All records that gave no sequence. */
  readonly dropped: readonly DroppedRecord[];
  /** Notes about records that are kept: the first ones, and how many there are of each code. */
  readonly noted: readonly DroppedRecord[];
  readonly notes: Readonly<Record<string, number>>;
}

type Shown = readonly [sequence: number, pictures: readonly number[]];

interface PictureProbe {
  readonly sequence: number;
  readonly messages: NonNullable<ProbePrompt["messages"]>;
}

/** Of a chunk. Others could be probes, too, but each run needs a few only. */
const mostPictureProbes = 16;
/** Pictures of a probe, in bytes: they travel with each request of each proof. */
const probePictureBytes = 64 * 1024;
/** Most notes of a chunk that are kept one by one; others are only counted. */
export const shownRecords = 1000;
const recordsPerBatch = 256;

/** Kinds of records whose answers are rendered as conversations, where a method trains them. */
const compared: ReadonlySet<Rec["kind"]> = new Set(["preference", "ranked", "unpaired"]);

/** Equal records give equal chunks. `breathe` is called after each few milliseconds' work. @throws what `encode` throws; the signal's reason */
export async function encodeChunk(
  encoder: RecordEncoder,
  records: Iterable<Rec>,
  { signed = false, signal, breathe }: { signed?: boolean; signal?: AbortSignal; breathe?: (() => Promise<void>) | undefined } = {},
): Promise<EncodedChunk> {
  const digests: string[] = [];
  const positions: number[] = [];
  const lines: number[] = [];
  const sides: number[] = [];
  const parts: Int32Array[] = [];
  const signatures: Uint32Array[] = [];
  const dropped: DroppedRecord[] = [];
  const noted: DroppedRecord[] = [];
  const notes: Record<string, number> = {};
  const pictures = new Map<Digest, { entry: PictureEntry; at: number }>();
  const shown: Shown[] = [];
  const pictureProbes: PictureProbe[] = [];
  const placeOf = (entry: PictureEntry): number => {
    const known = pictures.get(entry.digest) ?? { entry, at: pictures.size };
    pictures.set(entry.digest, known);
    return known.at;
  };
  let count = 0;
  let needsTemplate = false;
  for (const batch of inBatches(records)) {
    signal?.throwIfAborted();
    await breathe?.();
    for (const [at, result] of (await encoder.encode(batch)).entries()) {
      const record = batch[at] as Rec;
      const { id, kind, meta } = record;
      const place = { id, ...(meta.file === undefined ? {} : { file: meta.file }), line: meta.line };
      // Decided by this chunk's records. The encoder may have seen conversations in other chunks.
      const isConversation = kind === "chat" || (compared.has(kind) && result.samples.length > 0);
      needsTemplate ||= isConversation && result.dropped?.code !== "BASE_CANNOT_SEE";
      if (result.dropped !== null) dropped.push({ ...place, ...result.dropped });
      const signature = signed && result.samples.length > 0 ? (signatureOf(comparedText(record)) ?? unsigned) : unsigned;
      for (const sample of result.samples) {
        if (signed) signatures.push(signature);
        digests.push(id.slice("sha256:".length));
        positions.push(count);
        lines.push(meta.line);
        if (sample.side !== undefined) sides.push(sample.side);
        if (sample.pictures !== undefined && sample.pictures.length > 0) {
          shown.push([lines.length - 1, sample.pictures.map(placeOf)]);
          const bytes = sample.pictures.reduce((sum, picture) => sum + picture.bytes, 0);
          const messages = bytes <= probePictureBytes && pictureProbes.length < mostPictureProbes ? sample.question?.() : undefined;
          if (messages !== undefined) pictureProbes.push({ sequence: lines.length - 1, messages });
        }
        parts.push(sample.ids, sample.labels);
      }
      for (const note of result.notes) {
        notes[note.code] = (notes[note.code] ?? 0) + 1;
        if (noted.length < shownRecords) noted.push({ ...place, ...note });
      }
      count++;
    }
  }
  const lengths = new Int32Array(lines.length);
  const supervised = new Int32Array(lines.length);
  const data = new Int32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const [index, part] of parts.entries()) {
    data.set(part, at);
    at += part.length;
    if (index % 2 === 0) lengths[index / 2] = part.length;
    else supervised[(index - 1) / 2] = countTrained(part);
  }
  return {
    records: count,
    family: needsTemplate ? encoder.family : null,
    digests: new Uint8Array(Buffer.from(digests.join(""), "hex")),
    positions: Int32Array.from(positions),
    lines: Int32Array.from(lines),
    lengths,
    supervised,
    sides: Int32Array.from(sides),
    signatures: concatenated(signatures),
    data,
    pictures: [...pictures.values()].map(({ entry }) => entry),
    shown,
    pictureProbes,
    dropped,
    noted,
    notes,
  };
}

/** Copies by index, because all tokens of a run pass here and iterators would take as long as all other work. */
function countTrained(labels: Int32Array): number {
  let count = 0;
  for (let at = 0; at < labels.length; at++) if (labels[at] !== ignored) count++;
  return count;
}

const unsigned = new Uint32Array(signatureSize);

function concatenated(parts: readonly Uint32Array[]): Uint32Array {
  const whole = new Uint32Array(parts.length * signatureSize);
  for (const [index, part] of parts.entries()) whole.set(part, index * signatureSize);
  return whole;
}

/** @returns the signature of a sequence's record; undefined when it is too short, or signatures were not asked for. */
export function signatureOfSequence({ signatures }: EncodedChunk, sequence: number): Uint32Array | undefined {
  const signature = signatures.subarray(sequence * signatureSize, (sequence + 1) * signatureSize);
  return signature.some((value) => value !== 0) ? signature : undefined;
}

function* inBatches(records: Iterable<Rec>): Generator<Rec[]> {
  let batch: Rec[] = [];
  for (const record of records) {
    batch.push(record);
    if (batch.length < recordsPerBatch) continue;
    yield batch;
    batch = [];
  }
  if (batch.length > 0) yield batch;
}

/** @returns the id of a sequence's record. */
export const recordIdOf = ({ digests }: EncodedChunk, sequence: number): Digest =>
  `sha256:${Buffer.from(digests.buffer, digests.byteOffset + sequence * 32, 32).toString("hex")}`;

/** Parses the records of a chunk that ingest wrote. */
export function* parseLines(jsonl: string): Generator<Rec> {
  for (let start = 0; start < jsonl.length;) {
    const end = jsonl.indexOf("\n", start);
    const line = jsonl.slice(start, end === -1 ? undefined : end);
    // Not validated again: ingest wrote it by the contract, and its digest was verified.
    if (line !== "") yield JSON.parse(line) as Rec;
    start = end === -1 ? jsonl.length : end + 1;
  }
}

/*
 * The chunk as bytes, in the computer's byte order, which is little-endian wherever Node runs:
 *
 *   Uint32 bytes of the header | header, JSON, filled up with blanks to a multiple of 4 | digests | positions | lines | lengths | supervised | sides | signatures | data
 */

type Header = Pick<EncodedChunk, "records" | "family" | "dropped" | "noted" | "notes"> & {
  v: 1;
  sequences: number;
  signed: boolean;
  /** Absent: by older code, which compared nothing. */
  sided?: boolean;
  numbers: number;
  /** Absent: none. */
  pictures?: EncodedChunk["pictures"];
  shown?: EncodedChunk["shown"];
  pictureProbes?: EncodedChunk["pictureProbes"];
};

export function chunkToBytes(chunk: EncodedChunk): Uint8Array {
  const { records, family, dropped, noted, notes, digests, positions, lines, lengths, supervised, sides, signatures, data } = chunk;
  const { pictures, shown, pictureProbes } = chunk;
  const header: Header = {
    v: 1,
    records,
    family,
    sequences: lengths.length,
    signed: signatures.length > 0,
    sided: sides.length > 0,
    numbers: data.length,
    dropped,
    noted,
    notes,
    ...(pictures.length > 0 && { pictures, shown, pictureProbes }),
  };
  const json = new TextEncoder().encode(JSON.stringify(header));
  const start = Math.ceil((4 + json.length) / 4) * 4;
  const arrays = [digests, positions, lines, lengths, supervised, sides, signatures, data];
  const bytes = new Uint8Array(arrays.reduce((sum, array) => sum + array.byteLength, start)).fill(0x20, 4, start);
  new DataView(bytes.buffer).setUint32(0, start - 4, true);
  bytes.set(json, 4);
  let at = start;
  for (const array of arrays) {
    bytes.set(new Uint8Array(array.buffer, array.byteOffset, array.byteLength), at);
    at += array.byteLength;
  }
  return bytes;
}

/** Parses the bytes. Arrays are views into them where the alignment allows it. */
export function chunkFromBytes(given: Uint8Array): EncodedChunk {
  const bytes = given.byteOffset % 4 === 0 ? given : given.slice();
  const size = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  const {
    sequences,
    signed,
    sided = false,
    numbers,
    pictures = [],
    shown = [],
    pictureProbes = [],
    v: _version,
    ...header
  } = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + size))) as Header;
  let at = bytes.byteOffset + 4 + size;
  const next = <T>(array: new (buffer: ArrayBufferLike, at: number, length: number) => T & { byteLength: number }, length: number): T => {
    const view = new array(bytes.buffer, at, length);
    at += view.byteLength;
    return view;
  };
  return {
    ...header,
    pictures,
    shown,
    pictureProbes,
    digests: next(Uint8Array, sequences * 32),
    positions: next(Int32Array, sequences),
    lines: next(Int32Array, sequences),
    lengths: next(Int32Array, sequences),
    supervised: next(Int32Array, sequences),
    sides: next(Int32Array, sided ? sequences : 0),
    signatures: next(Uint32Array, signed ? sequences * signatureSize : 0),
    data: next(Int32Array, numbers),
  };
}
