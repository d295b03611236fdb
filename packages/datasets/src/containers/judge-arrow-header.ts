/**
 * The header of an Arrow message, which is a flatbuffer, counted before apache-arrow decodes it. Parts of a flatbuffer may be named any number of
 * times, so a few hundred bytes can mean a billion fields; and apache-arrow takes what lies behind the header for zeros, where a read fails here.
 */
import { PermanentError } from "@loraline/runtime";

/** Fields of a schema, columns and what they consist of, with entries of their metadata. */
const mostItems = 100_000;
/** Bytes of their names and metadata. */
const mostText = 16 * 1024 * 1024;
const mostLevels = 64;

/** Kinds of messages (`MessageHeader`) and of columns (`Type`), as Arrow's Message.fbs and Schema.fbs number them. */
const [schema, dictionaryBatch, recordBatch] = [1, 2, 3];
const [timestamp, union] = [10, 14];

/** @throws PermanentError FILE_TOO_LARGE; Error: it contradicts itself */
export function judgeArrowHeader(bytes: Uint8Array): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const int = (at: number): number => view.getInt32(at, true);
  const target = (at: number): number => at + int(at);
  /** Where a table has its value of a slot, as the format numbers them: 4, 6, 8, … 0: it has none. */
  const valueAt = (table: number, slot: number): number => {
    const slots = table - int(table);
    const offset = slot < view.getInt16(slots, true) ? view.getInt16(slots + slot, true) : 0;
    return offset === 0 ? 0 : table + offset;
  };
  const tableAt = (table: number, slot: number): number | undefined => {
    const at = valueAt(table, slot);
    return at === 0 ? undefined : target(at);
  };
  /** Where the elements begin, and how many there are. */
  const vectorAt = (table: number, slot: number, bytesOfElement: number): [start: number, length: number] => {
    const vector = tableAt(table, slot);
    if (vector === undefined) return [0, 0];
    const length = int(vector);
    if (length < 0 || vector + 4 + length * bytesOfElement > bytes.byteLength)
      throw new Error("a list in a header is longer than the header");
    return [vector + 4, length];
  };

  let items = 0;
  const count = (more: number): void => {
    items += more;
    if (items > mostItems) {
      const message = `the Arrow file has more than ${mostItems} fields and entries of metadata. Write fewer columns, or keep the metadata elsewhere.`;
      throw new PermanentError("FILE_TOO_LARGE", message);
    }
  };
  let text = 0;
  const countText = (table: number, slot: number): void => {
    text += vectorAt(table, slot, 1)[1];
    if (text > mostText) {
      throw new PermanentError(
        "FILE_TOO_LARGE",
        `names and metadata in the Arrow file take more than ${mostText} bytes. Leave metadata out.`,
      );
    }
  };
  const countMetadata = (table: number, slot: number): void => {
    const [start, length] = vectorAt(table, slot, 4);
    count(length);
    for (let index = 0; index < length; index++) {
      const entry = target(start + 4 * index);
      countText(entry, 4);
      countText(entry, 6);
    }
  };
  /** Of each dictionary the first field that names it: apache-arrow takes the type of all others from there, with all that is nested in it. */
  const dictionaries = new Map<bigint, number>();
  const countFields = (table: number, slot: number, level: number): void => {
    if (level > mostLevels) throw new Error(`its schema is nested more than ${mostLevels} levels deep`);
    const [start, length] = vectorAt(table, slot, 4);
    count(length);
    for (let index = 0; index < length; index++) countField(target(start + 4 * index), level);
  };
  const countField = (field: number, level: number): void => {
    countText(field, 4);
    countMetadata(field, 16);
    const dictionary = tableAt(field, 12);
    const id = dictionary && valueAt(dictionary, 4);
    const key = id === undefined ? undefined : id === 0 ? 0n : view.getBigInt64(id, true);
    const typed = key === undefined ? field : (dictionaries.get(key) ?? field);
    const kind = valueAt(typed, 8);
    const type = tableAt(typed, 10);
    if (kind !== 0 && type !== undefined) {
      // The name of the time zone, and the numbers of a union's members.
      if (view.getUint8(kind) === timestamp) countText(type, 6);
      if (view.getUint8(kind) === union) count(vectorAt(type, 6, 4)[1]);
    }
    countFields(typed, 14, level + 1);
    if (key !== undefined) dictionaries.set(key, typed);
  };

  const message = target(0);
  countMetadata(message, 12);
  const kind = valueAt(message, 6);
  const header = tableAt(message, 8);
  if (kind === 0 || header === undefined) return;
  switch (view.getUint8(kind)) {
    case schema: {
      countFields(header, 6, 1);
      countMetadata(header, 8);
      return;
    }
    case dictionaryBatch:
    case recordBatch: {
      const batch = view.getUint8(kind) === recordBatch ? header : tableAt(header, 6);
      if (batch === undefined) return;
      // Lengths of columns, places of buffers, and numbers of buffers: each is as many objects as it says.
      for (const [slot, bytesOfElement] of [
        [6, 16],
        [8, 16],
        [12, 8],
      ] as const) {
        vectorAt(batch, slot, bytesOfElement);
      }
    }
  }
}
