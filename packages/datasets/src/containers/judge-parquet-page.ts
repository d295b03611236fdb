/**
 * A page of a Parquet file, looked through before hyparquet decodes it. hyparquet writes out a run of equal values however long it says it is, copies
 * what a text shares with the one before, goes backwards over blocks of a negative size, and needs quadratic time for a number without an end.
 */
import { PermanentError } from "@loraline/runtime";
import type { DataReader, Encoding, PageHeader, ParquetType, SchemaElement, SchemaTree } from "hyparquet";
import { deltaBinaryUnpack } from "hyparquet/src/delta.js";
import { readRleBitPackedHybrid } from "hyparquet/src/encoding.js";
import { getMaxDefinitionLevel, getMaxRepetitionLevel } from "hyparquet/src/schema.js";
import { readVarInt } from "hyparquet/src/thrift.js";

interface PageColumn {
  readonly type: ParquetType;
  readonly element: SchemaElement;
  readonly schemaPath: SchemaTree[];
}
interface Most {
  /** Values of a run, or of a block. */
  readonly values: number;
  /** Bytes of a page's texts. */
  readonly bytes: number;
}

/**
 * @param page - unpacked, levels and values.
 * @throws PermanentError FILE_TOO_LARGE; Error: it contradicts itself
 */
export function judgePage(page: Uint8Array, header: PageHeader, column: PageColumn, most: Most): void {
  const reader: DataReader = { view: new DataView(page.buffer, page.byteOffset, page.byteLength), offset: 0 };
  const [repeated, defined] = [getMaxRepetitionLevel(column.schemaPath), getMaxDefinitionLevel(column.schemaPath)];
  const bitsOf = (level: number): number => 32 - Math.clz32(level);
  const { data_page_header: first, data_page_header_v2: second } = header;
  if (header.type === "DATA_PAGE" && first !== undefined) {
    const { num_values: levels, encoding } = first;
    let values = levels;
    if (repeated > 0) {
      const end = lengthAt(reader) + reader.offset;
      judgeRuns(reader, bitsOf(repeated), levels, most);
      reader.offset = end;
    }
    if (defined > 0) {
      const [length, start] = [lengthAt(reader), reader.offset];
      judgeRuns(reader, bitsOf(defined), levels, most);
      // Values that are null are left out of what follows.
      const level = new Uint8Array(levels);
      reader.offset = start;
      readRleBitPackedHybrid(reader, bitsOf(defined), level, length);
      values = 0;
      for (const each of level) if (each === defined) values++;
    }
    judgeValues(reader, column, { encoding, values, isOfFlags: column.type === "BOOLEAN", hasRunsOfNoBits: false }, most);
  } else if (header.type === "DATA_PAGE_V2" && second !== undefined) {
    const {
      num_values: levels,
      num_nulls,
      encoding,
      repetition_levels_byte_length: before,
      definition_levels_byte_length: length,
    } = second;
    if (repeated > 0) judgeRuns(reader, bitsOf(repeated), levels, most);
    reader.offset = before;
    if (defined > 0) judgeRuns(reader, bitsOf(defined), levels, most);
    else if (length > 0) throw new Error("a page has levels that its column does not have");
    reader.offset = before + length;
    judgeValues(reader, column, { encoding, values: levels - num_nulls, isOfFlags: encoding === "RLE", hasRunsOfNoBits: true }, most);
  }
}

function lengthAt(reader: DataReader): number {
  reader.offset += 4;
  return reader.view.getUint32(reader.offset - 4, true);
}

/** @param isOfFlags - runs of one bit, behind their length; `hasRunsOfNoBits`: runs are read even if each value has no bits. */
function judgeValues(
  reader: DataReader,
  { type, element }: PageColumn,
  { encoding, values, isOfFlags, hasRunsOfNoBits }: { encoding: Encoding; values: number; isOfFlags: boolean; hasRunsOfNoBits: boolean },
  most: Most,
): void {
  if (values === 0) return;
  switch (encoding) {
    case "PLAIN_DICTIONARY":
    case "RLE_DICTIONARY":
    case "RLE": {
      if (isOfFlags) reader.offset += 4;
      const bits = isOfFlags ? 1 : reader.view.getUint8(reader.offset++);
      if (bits > 0 || hasRunsOfNoBits) judgeRuns(reader, bits, values, most);
      return;
    }
    case "DELTA_BINARY_PACKED":
    case "DELTA_LENGTH_BYTE_ARRAY":
      return judgeDeltas(reader, values, most);
    case "DELTA_BYTE_ARRAY": {
      let bytes = 0;
      // What each text shares with the one before, then how long the rest of each is.
      for (const _ of ["shared", "rest"]) {
        const start = reader.offset;
        judgeDeltas(reader, values, most);
        reader.offset = start;
        const lengths = new Int32Array(values);
        deltaBinaryUnpack(reader, values, lengths);
        for (const length of lengths) {
          if (length < 0) throw new Error("a page has texts of a length that cannot be");
          bytes += length;
        }
      }
      if (bytes > most.bytes) {
        const message = `the texts of a page of the Parquet file have ${bytes} bytes; ${most.bytes} are allowed. Write smaller pages.`;
        throw new PermanentError("FILE_TOO_LARGE", message);
      }
      return;
    }
    case "BYTE_STREAM_SPLIT": {
      const bytes = type === "FIXED_LEN_BYTE_ARRAY" ? (element.type_length ?? 0) : type === "DOUBLE" || type === "INT64" ? 8 : 4;
      if (!(values * bytes <= reader.view.byteLength - reader.offset)) throw new Error("a page has fewer bytes than its values take");
      return;
    }
    // hyparquet reads plain values one after the other, up to the end of the page, and none of the others.
    case "PLAIN":
    case "BIT_PACKED":
    case "GROUP_VAR_INT":
  }
}

/** Runs of equal values, and groups of eight values that stand side by side. */
function judgeRuns(reader: DataReader, bits: number, values: number, most: Most): void {
  for (let seen = 0; seen < values;) {
    const head = readVarInt(reader);
    const isPacked = (head & 1) === 1;
    const length = isPacked ? (head >> 1) << 3 : head >>> 1;
    if (length < 0 || length > most.values) throw new Error(`a page has a run of ${length} values`);
    reader.offset += isPacked ? Math.max(1, (length / 8) * bits) : (bits + 7) >> 3;
    seen += length;
  }
}

/** Numbers by their distances, in blocks of parts, each of which has a width in bits. */
function judgeDeltas(reader: DataReader, values: number, most: Most): void {
  const [block, parts] = [numberAt(reader), numberAt(reader)];
  // How many there are, and the first of them.
  numberAt(reader);
  numberAt(reader);
  const ofPart = block / parts;
  if (!(block > 0 && block <= most.values && ofPart % 32 === 0)) throw new Error("a page has blocks of a size that cannot be");
  for (let seen = 1; seen < values;) {
    numberAt(reader);
    const widths = reader.offset;
    reader.offset += parts;
    for (let part = 0; part < parts && seen < values; part++) {
      const bits = reader.view.getUint8(widths + part);
      if (bits > 64) throw new Error(`a page has numbers of ${bits} bits`);
      reader.offset += (ofPart * bits) / 8;
      seen += ofPart;
    }
  }
}

/** A number of seven bits for each byte. Of more than ten bytes none is written. */
function numberAt(reader: DataReader): number {
  let value = 0;
  for (let index = 0; index < 10; index++) {
    const byte = reader.view.getUint8(reader.offset++);
    value += (byte & 0x7f) * 2 ** (7 * index);
    if (byte < 0x80) return value;
  }
  throw new Error("a page has a number of more than 10 bytes");
}
