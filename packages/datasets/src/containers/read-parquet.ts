/**
 * Parquet to rows, page by page.
 *
 * hyparquet reads a row group at once, and many files have only one. Here each column goes through its pages with hyparquet's own
 * decoders, and rows are put together as soon as every column has them: memory is a page for each column, whatever the file's size.
 */
import { brotliDecompressSync, gunzipSync, zstdDecompressSync } from "node:zlib";
import { PermanentError } from "@loraline/runtime";
import {
  type ColumnMetaData,
  type CompressionCodec,
  type Compressors,
  type DecodedArray,
  type FileMetaData,
  type PageHeader,
  parquetMetadata,
  parquetSchema,
  type SchemaElement,
  type SchemaTree,
} from "hyparquet";
import { compressors as portable } from "hyparquet-compressors";
import { assembleNested } from "hyparquet/src/assemble.js";
import { parquetHeader, readPage } from "hyparquet/src/column.js";
import { convert, DEFAULT_PARSERS } from "hyparquet/src/convert.js";
import { decompressPage } from "hyparquet/src/datapage.js";
import { isFlatColumn } from "hyparquet/src/schema.js";
import { shorten } from "../formats/signature.ts";
import { judgePage } from "./judge-parquet-page.ts";
import { judgeThrift } from "./judge-thrift.ts";
import type { RawRow } from "./raw-rows.ts";
import { brokenText, createRowBatch, dayOf, decimalOf, JsonText, textOf, textOrBinary, timeOf } from "./row-values.ts";
import { openRandomAccess, type RandomAccess } from "./spool.ts";
import type { UnpackLimits } from "./unpack.ts";

/** Largest page, in bytes after unpacking. Writers make pages of about 1 MiB. */
const maxPageBytes = 128 * 1024 * 1024;
/** Most values of a page. Equal values take nearly no bytes, so a limit on bytes does not bound them. */
const maxPageValues = 8_000_000;
/** Most values of the pages of all columns that are read at a time. Each value takes eight bytes or more. */
const maxHeldValues = 16_000_000;
/** Largest footer (the file's table of contents), in bytes. */
const maxFooterBytes = 128 * 1024 * 1024;
/** Most fields and elements of lists in the footer: some fifty thousand columns of row groups. */
const maxFooterItems = 2_000_000;
const maxPageHeaderItems = 1000;
/** Deepest nesting of columns. */
const maxSchemaLevels = 64;
/** Largest decimal number, in bytes: about a thousand digits. */
const maxDecimalBytes = 400;
/** A file with more rows than this, and more than a hundred rows per byte, was made as an attack. */
const freeRows = 1_000_000;
const batchBytes = 256 * 1024;
const mostRowsOfBatch = 1000;

const compressors: Compressors = {
  ...portable,
  GZIP: (input, length) => gunzipSync(input, { maxOutputLength: Math.max(1, length) }),
  ZSTD: (input, length) => zstdDecompressSync(input, { maxOutputLength: Math.max(1, length) }),
  BROTLI: (input, length) => brotliDecompressSync(input, { maxOutputLength: Math.max(1, length) }),
};

/** @throws PermanentError FILE_TRUNCATED, FILE_CORRUPT, FILE_TOO_LARGE from the iteration. */
export async function* readParquet(
  source: AsyncIterable<Uint8Array> | { readonly file: string },
  {
    maxRowBytes,
    unpackLimits,
    onShare,
  }: { maxRowBytes: number; unpackLimits: UnpackLimits; onShare?: ((share: number) => void) | undefined },
): AsyncGenerator<RawRow[], void, undefined> {
  await using file = await openRandomAccess(source);
  let line = 0;
  try {
    const metadata = await readMetadata(file);
    judgeSchema(metadata.schema);
    const tree = parquetSchema(metadata);
    const pathTo = pathsFrom(tree);
    const batch = createRowBatch({ maxRowBytes, maxBytes: unpackLimits.maxUnpackedBytes });
    const budget = {
      held: 0,
      left: Math.min(unpackLimits.maxUnpackedBytes, Math.max(unpackLimits.ratioFromBytes, file.size * unpackLimits.maxRatio)),
    };
    for (const { columns, num_rows, total_byte_size } of metadata.row_groups) {
      const groupRows = Number(num_rows);
      const open = columns.map(({ meta_data, file_path }) => {
        if (meta_data === undefined || file_path !== undefined) throw new Error("a column is encrypted, or lies in another file");
        return openColumn(file, meta_data, pathTo(meta_data.path_in_schema), budget);
      });
      const rowBytes = Math.max(1, Number(total_byte_size) / Math.max(1, groupRows));
      const step = Math.max(1, Math.min(mostRowsOfBatch, Math.floor(batchBytes / rowBytes)));
      for (let done = 0; done < groupRows;) {
        const wanted = Math.min(step, groupRows - done);
        const leaves = new Map<string, DecodedArray>();
        for (const column of open) leaves.set(column.path, await column.take(wanted));
        for (const row of assembleRows(tree, leaves, wanted)) {
          if (batch.add(++line, row)) yield batch.take();
        }
        yield batch.take();
        done += wanted;
        onShare?.(line / Math.max(1, Number(metadata.num_rows)));
      }
    }
  } catch (error) {
    if (error instanceof PermanentError || isSystemError(error)) throw error;
    const message = `the Parquet file cannot be read after row ${line}: ${(error as Error).message}. Write it again.`;
    throw new PermanentError("FILE_CORRUPT", message, { cause: error });
  }
}

/** A full disk or a lost handle says nothing about the file. */
const isSystemError = (error: unknown): boolean => typeof (error as NodeJS.ErrnoException).syscall === "string";

async function readMetadata(file: RandomAccess): Promise<FileMetaData> {
  const tail = file.size >= 12 ? Buffer.from(await file.read(file.size - 8, file.size)) : Buffer.alloc(8);
  const magic = tail.toString("latin1", 4);
  if (magic === "PARE") throw new PermanentError("CONTAINER_UNSUPPORTED", "the Parquet file is encrypted. Write it without encryption.");
  if (magic !== "PAR1") {
    throw new PermanentError(
      "FILE_TRUNCATED",
      "the Parquet file ends too early: its table of contents, which stands at the end, is missing. Upload it again, whole.",
    );
  }
  const footer = tail.readUInt32LE(0);
  if (footer > file.size - 12 || footer > maxFooterBytes) {
    throw new PermanentError(
      "FILE_CORRUPT",
      `the Parquet file's table of contents is said to have ${footer} bytes, which cannot be. Write it again.`,
    );
  }
  const bytes = await file.read(file.size - 8 - footer, file.size);
  // The fifth struct, from the footer itself, is a column's statistics, of which nothing is used: hyparquet needs quadratic time for a long decimal.
  judgeThrift(new Uint8Array(bytes, 0, footer), {
    what: "the table of contents",
    mostItems: maxFooterItems,
    blankFrom: 5,
  });
  const metadata = parquetMetadata(bytes, { geoparquet: false, parsers: { ...DEFAULT_PARSERS, uuidFromBytes: () => undefined } });
  const rows = Number(metadata.num_rows);
  const inGroups = metadata.row_groups.reduce((sum, group) => sum + Number(group.num_rows), 0);
  if (!(rows >= 0) || rows !== inGroups || metadata.row_groups.some((group) => group.num_rows < 0)) {
    throw new Error(`it is said to have ${rows} rows, and ${inGroups} in its row groups`);
  }
  if (rows > freeRows && rows > file.size * 100) {
    throw new PermanentError(
      "FILE_TOO_LARGE",
      `the Parquet file has ${rows} rows in ${file.size} bytes, as bombs do. Leave out the equal rows.`,
    );
  }
  return metadata;
}

/**
 * hyparquet calls itself for each level of the schema, and keeps the names of all levels for each element; and of a Variant it reads all that its
 * bytes name, any number of times.
 */
function judgeSchema(schema: readonly SchemaElement[]): void {
  /** How many children of each element that stands around the next one are still to come. */
  const left: number[] = [];
  for (const { name, num_children: children = 0, logical_type: type } of schema) {
    if (!Number.isInteger(children)) throw new Error("its schema is damaged");
    if (type?.type === "VARIANT") {
      const message = `the column "${shorten(name)}" of the Parquet file is of the type Variant, which is not read. Write it as JSON text.`;
      throw new PermanentError("CONTAINER_UNSUPPORTED", message);
    }
    if (left.length > 0) left.push((left.pop() as number) - 1);
    if (children > 0 && left.push(children) > maxSchemaLevels)
      throw new Error(`its columns are nested more than ${maxSchemaLevels} levels deep`);
    while (left.at(-1) === 0) left.pop();
  }
}

/** Finds the elements from the root to a column. hyparquet compares each name with those of all columns beside it, for every row group. */
function pathsFrom(tree: SchemaTree): (path: readonly string[]) => SchemaTree[] {
  const named = new Map<SchemaTree, Map<string, SchemaTree>>();
  return (path) => {
    if (path.length === 0) throw new Error("a column has no name");
    const found = [tree];
    for (const name of path) {
      const parent = found.at(-1) as SchemaTree;
      const children = named.get(parent) ?? new Map(parent.children.map((child) => [child.element.name, child]));
      named.set(parent, children);
      const child = children.get(name);
      if (child === undefined) throw new Error(`it has no column "${shorten(path.join("."))}" in its schema`);
      found.push(child);
    }
    return found;
  };
}

interface Column {
  path: string;
  /** Reads exactly so many of the next rows. */
  take(rows: number): Promise<DecodedArray>;
}

function openColumn(file: RandomAccess, meta: ColumnMetaData, schemaPath: SchemaTree[], budget: { left: number; held: number }): Column {
  const leaf = schemaPath.at(-1) as SchemaTree;
  const flat = isFlatColumn(schemaPath);
  const { decoder, finish } = decoderOf(meta, schemaPath, leaf);
  const path = meta.path_in_schema.join(".");
  const shown = shorten(path);
  let offset = Number(meta.dictionary_page_offset ?? 0n) || Number(meta.data_page_offset);
  if (offset > Number(meta.data_page_offset)) offset = Number(meta.data_page_offset);
  const end = offset + Number(meta.total_compressed_size);
  let dictionary: DecodedArray | undefined;
  /** Rows that are read and not yet taken. The last row of a nested column may continue in the next page. */
  let pending: unknown[] = [];
  /** Index in `pending` of the first row that is not yet taken. Moving the rest to the front at each take would need quadratic time. */
  let begin = 0;
  let taken = 0;
  /** Values of the newest row, if it goes on through pages that begin no other. */
  let unfinished = 0;

  /** @returns false at the end of the column. */
  async function readNext(): Promise<boolean> {
    if (offset >= end) return false;
    let header: ReturnType<typeof parquetHeader> | undefined;
    let headerBytes = 0;
    // A header may hold statistics, so it may have any length.
    for (let window = 16 * 1024; header === undefined; window *= 16) {
      const reader = { view: new DataView(await file.read(offset, Math.min(end, offset + window))), offset: 0 };
      try {
        judgeThrift(new Uint8Array(reader.view.buffer), {
          what: `the header of a page of column "${shown}"`,
          mostItems: maxPageHeaderItems,
        });
        header = parquetHeader(reader);
        headerBytes = reader.offset;
      } catch (error) {
        if (error instanceof PermanentError || offset + window >= end || window > maxFooterBytes) throw error;
      }
    }
    const { compressed_page_size: packed, uncompressed_page_size: unpacked, type } = header;
    const { data_page_header: first, data_page_header_v2: second, dictionary_page_header: words } = header;
    // A header may have all three, of which its type says which is meant.
    const values = Math.max(first?.num_values ?? 0, second?.num_values ?? 0, words?.num_values ?? 0);
    if (!(packed >= 0) || !(unpacked >= 0) || !(values >= 0) || offset + headerBytes + packed > end || !partsFit(second, unpacked))
      throw new Error(`a page of column "${shown}" does not fit`);
    if (unpacked > maxPageBytes || values > maxPageValues) {
      throw new PermanentError(
        "FILE_TOO_LARGE",
        `a page of column "${shown}" has ${values} values in ${unpacked} bytes; the limits are ${maxPageValues} and ${maxPageBytes}. Write smaller pages.`,
      );
    }
    if (budget.held + values > maxHeldValues) {
      throw new PermanentError(
        "FILE_TOO_LARGE",
        `the pages of the columns up to "${shown}" that have to be read side by side hold more than ${maxHeldValues} values. Write smaller pages or row groups.`,
      );
    }
    budget.left -= unpacked;
    if (budget.left < 0)
      throw new PermanentError(
        "FILE_TOO_LARGE",
        "the Parquet file unpacks to far more than its size, as bombs do. Write it again without compression.",
      );
    const stored = new Uint8Array(await file.read(offset + headerBytes, offset + headerBytes + packed));
    offset += headerBytes + packed;
    if (type === "INDEX_PAGE") return true;
    const bytes = unpackPage(stored, header, meta.codec);
    judgePage(bytes, header, decoder, { values: maxHeldValues, bytes: maxPageBytes });
    header = { ...header, compressed_page_size: bytes.byteLength };
    const page = { view: new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), offset: 0 };
    if (type === "DICTIONARY_PAGE") {
      const { data } = readPage(page, header, decoder, undefined, undefined, 0);
      dictionary = data === undefined ? undefined : convert(data, decoder);
      return true;
    }
    const before = pending.length;
    const { data = [] } = readPage(page, header, decoder, dictionary, flat ? undefined : pending, 0);
    if (data !== pending) for (const value of data) pending.push(value);
    budget.held += pending.length - before;
    if (pending.length - before > values + 1) throw new Error(`a page of column "${shown}" has more rows than values`);
    unfinished = pending.length > before ? values : unfinished + values;
    if (unfinished > maxPageValues) {
      throw new PermanentError(
        "FILE_TOO_LARGE",
        `row ${taken + pending.length - begin} has more than ${maxPageValues} values in column "${shown}". Make shorter rows.`,
      );
    }
    return true;
  }

  return {
    path,
    async take(rows) {
      // The last row is complete only when the next row begins or the column ends.
      let more = true;
      while (more && pending.length - begin < rows + (flat ? 0 : 1)) more = await readNext();
      if (pending.length - begin < rows) throw new Error(`column "${shown}" ends after row ${taken + pending.length - begin}`);
      taken += rows;
      const out = pending.slice(begin, begin + rows);
      begin += rows;
      budget.held -= rows;
      if (begin * 2 >= pending.length) {
        pending = pending.slice(begin);
        begin = 0;
      }
      return finish === undefined ? out : out.map(finish);
    },
  };
}

/** A page's bytes without packing. In the second version its levels are not packed, and stand before its values. */
function unpackPage(
  bytes: Uint8Array,
  { type, uncompressed_page_size: size, data_page_header_v2: second }: PageHeader,
  codec: CompressionCodec,
) {
  if (type !== "DATA_PAGE_V2" || second === undefined) return decompressPage(bytes, size, codec, compressors);
  if (second.is_compressed === false) return bytes;
  const levels = second.definition_levels_byte_length + second.repetition_levels_byte_length;
  return Buffer.concat([bytes.subarray(0, levels), decompressPage(bytes.subarray(levels), size - levels, codec, compressors)]);
}

/** Whether the levels of a page of the second version leave room for its values: hyparquet subtracts what the header says of them. */
const partsFit = (header: PageHeader["data_page_header_v2"], unpacked: number): boolean =>
  header === undefined ||
  (header.num_nulls >= 0 &&
    header.num_nulls <= header.num_values &&
    header.definition_levels_byte_length >= 0 &&
    header.repetition_levels_byte_length >= 0 &&
    header.definition_levels_byte_length + header.repetition_levels_byte_length <= unpacked);

/** hyparquet's parameters, with values that lose nothing: hyparquet makes decimals, dates and broken text JavaScript's. */
function decoderOf(meta: ColumnMetaData, schemaPath: SchemaTree[], leaf: SchemaTree) {
  const { element } = leaf;
  const scale =
    element.logical_type?.type === "DECIMAL"
      ? element.logical_type.scale
      : element.converted_type === "DECIMAL"
        ? (element.scale ?? 0)
        : undefined;
  const isText = ["UTF8", "ENUM"].includes(element.converted_type ?? "") || ["STRING", "ENUM"].includes(element.logical_type?.type ?? "");
  const read = isText ? textOf : textOrBinary;
  const { converted_type: _converted, logical_type: _logical, ...bare } = element;
  const decoder = {
    ...meta,
    pathInSchema: meta.path_in_schema,
    schemaPath,
    element: scale === undefined ? element : bare,
    // Pages are unpacked when they get there.
    codec: "UNCOMPRESSED" as const,
    utf8: scale === undefined,
    parsers: {
      ...DEFAULT_PARSERS,
      stringFromBytes: read,
      jsonFromBytes(bytes: Uint8Array) {
        const text = textOf(bytes);
        return text === brokenText ? text : new JsonText(text);
      },
      geometryFromBytes: textOrBinary,
      geographyFromBytes: textOrBinary,
      dateFromDays: dayOf,
      timestampFromMilliseconds: (count: bigint) => timeOf(BigInt(count), "milli"),
      timestampFromMicroseconds: (count: bigint) => timeOf(BigInt(count), "micro"),
      timestampFromNanoseconds: (count: bigint) => timeOf(BigInt(count), "nano"),
    },
  };
  const asDecimal = (value: unknown): unknown => {
    if (Array.isArray(value)) return value.map(asDecimal);
    if (typeof value === "number" || typeof value === "bigint") return decimalOf(BigInt(value), scale ?? 0);
    if (!(value instanceof Uint8Array)) return value;
    if (value.byteLength > maxDecimalBytes)
      throw new Error(`a decimal number has ${value.byteLength} bytes; ${maxDecimalBytes} are allowed`);
    return decimalOf(
      value.byteLength === 0 ? 0n : BigInt.asIntN(value.byteLength * 8, BigInt(`0x${Buffer.from(value).toString("hex")}`)),
      scale ?? 0,
    );
  };
  return { decoder, finish: scale === undefined ? undefined : asDecimal };
}

function assembleRows(tree: SchemaTree, leaves: Map<string, DecodedArray>, count: number): Record<string, unknown>[] {
  // Without a prototype any name of a column is only a name.
  const rows = Array.from({ length: count }, () => Object.create(null) as Record<string, unknown>);
  for (const child of tree.children) {
    const { name } = child.element;
    if (child.children.length > 0) assembleNested(leaves, child, DEFAULT_PARSERS);
    const values = leaves.get(name);
    if (values === undefined || values.length !== count) throw new Error(`column "${shorten(name)}" has other rows than the file`);
    for (let index = 0; index < count; index++) (rows[index] as Record<string, unknown>)[name] = values[index];
  }
  return rows;
}
