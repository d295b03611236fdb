/**
 * Thrift's compact protocol, in which Parquet writes its footer and the headers of pages: skipped here before hyparquet parses it, which makes an
 * object of a byte (an empty struct), believes any length of a list, and needs quadratic time for a number without an end. Nothing is allocated.
 */
import { PermanentError } from "@loraline/runtime";

const [stop, yes, no, byteType, i16, i32, i64, double, binary, list, struct] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12];

/** Deepest nesting of structs and lists. Parquet's own is nine. */
const mostLevels = 64;

/**
 * @param bytes - begin with a struct; more may follow.
 * @param what - names it in messages, such as "the table of contents".
 * @param blankFrom - structs so deep, from 1, lose their texts, which become zeros.
 * @throws PermanentError FILE_TOO_LARGE; Error: it ends too early, or is none
 */
export function judgeThrift(
  bytes: Uint8Array,
  { what, mostItems, blankFrom = Number.POSITIVE_INFINITY }: { what: string; mostItems: number; blankFrom?: number },
): void {
  let at = 0;
  let items = 0;
  const count = (more: number): void => {
    items += more;
    if (items > mostItems) {
      const message = `${what} has more than ${mostItems} fields and elements. Write larger row groups, or split the file.`;
      throw new PermanentError("FILE_TOO_LARGE", message);
    }
  };
  const skip = (length: number): void => {
    at += length;
    if (at > bytes.byteLength) throw new Error(`${what} ends too early`);
  };
  const byte = (): number => {
    skip(1);
    return bytes[at - 1] as number;
  };
  /** A number of seven bits for each byte. Of lengths hyparquet reads the lower 32 bits only, so they must not have more. */
  const integer = (mostBytes: number): number => {
    let value = 0;
    for (let index = 0; index < mostBytes; index++) {
      const next = byte();
      value += (next & 0x7f) * 2 ** (7 * index);
      if (next < 0x80) return value;
    }
    throw new Error(`${what} has a number of more than ${mostBytes} bytes`);
  };
  const skipStruct = (level: number, structs: number): void => {
    for (let head = byte(); (head & 15) !== stop; head = byte()) {
      count(1);
      // The number of the field, where it is not told by the distance from the one before.
      if (head >> 4 === 0) integer(5);
      const type = head & 15;
      // The type of a flag says its value.
      if (type !== yes && type !== no) skipValue(type, level, structs);
    }
  };
  const skipValue = (type: number, level: number, structs: number): void => {
    if (level > mostLevels) throw new Error(`${what} is nested more than ${mostLevels} levels deep`);
    switch (type) {
      case byteType:
        return skip(1);
      case i16:
      case i32:
      case i64: {
        integer(10);
        return;
      }
      case double:
        return skip(8);
      case binary: {
        const length = integer(5);
        skip(length);
        if (structs >= blankFrom) bytes.fill(0, at - length, at);
        return;
      }
      case list: {
        const head = byte();
        const [length, of] = [head >> 4 === 15 ? integer(5) : head >> 4, head & 15];
        count(length);
        if (of === yes || of === no) return skip(length);
        for (let index = 0; index < length; index++) skipValue(of, level + 1, structs);
        return;
      }
      case struct:
        return skipStruct(level + 1, structs + 1);
      default:
        throw new Error(`${what} has a value of the type ${type}, which Parquet does not have`);
    }
  };
  skipStruct(1, 1);
}
