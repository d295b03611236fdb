/** Excel workbooks (xlsx): the first sheet that has rows below names of columns. Formulas are never evaluated: a cell has the value that was saved with it. */
import { PermanentError } from "@loraline/runtime";
import { zipSync } from "fflate";
import readWorkbook, { type CellValue } from "read-excel-file/node";
import { type Note, type RawRow, refused } from "../raw-rows.ts";
import { shorten } from "../../formats/signature.ts";
import { columnsOf, rowOfCells } from "../text/read-csv.ts";
import type { Archive } from "./read-zip.ts";

/** Bytes of a workbook, unpacked: the reader has it in memory as a whole. */
const mostBytes = 96 * 1024 ** 2;
const rowsPerBatch = 500;

/**
 * @param notes - gets the names of sheets that are not read.
 * @throws PermanentError FILE_TOO_LARGE, FILE_CORRUPT, CSV_HEADER from the iteration.
 */
export async function* readExcel(
  archive: Archive,
  { maxRowBytes, notes }: { maxRowBytes: number; notes: Note[] },
): AsyncGenerator<RawRow[], void, undefined> {
  const size = archive.files.reduce((sum, file) => sum + file.size, 0);
  if (size > mostBytes) {
    const message = `the workbook holds ${size} bytes unpacked; ${mostBytes} can be read. Save the sheet as CSV (UTF-8).`;
    throw new PermanentError("FILE_TOO_LARGE", message);
  }
  const sheets = await readWorkbook(await repacked(archive)).catch((error: unknown) => {
    const message = `the Excel workbook cannot be read (${(error as Error).message}). Save it again, or save the sheet as CSV (UTF-8).`;
    throw new PermanentError("FILE_CORRUPT", message, { cause: error });
  });
  const filled = sheets.filter(({ data }) => data.some(isFilled));
  // A sheet with one row has no rows below its names: it says what the workbook is about.
  const sheet = filled.find(({ data }) => data.filter(isFilled).length > 1) ?? filled[0];
  if (sheet === undefined) return;
  const others = filled.filter((other) => other !== sheet);
  if (others.length > 0) {
    const names = others.slice(0, 10).map((other) => `"${other.sheet}"`);
    notes.push({
      code: "SHEETS_LEFT_OUT",
      message: `only the sheet "${sheet.sheet}" is read; not read: ${names.join(", ")}. Save others as files of their own.`,
    });
  }
  const above = titleRows(sheet.data);
  if (above > 0) {
    const said = sheet.data
      .slice(0, above)
      .flat()
      .map(textOf)
      .filter((text) => text.trim() !== "");
    notes.push({
      code: "TITLE_LEFT_OUT",
      message: `what stands above the names of the columns is left out: ${said.map((text) => JSON.stringify(shorten(text))).join(", ")}.`,
    });
  }
  let columns: string[] | undefined;
  let rows: RawRow[] = [];
  for (const [index, cells] of sheet.data.entries()) {
    const line = index + 1;
    if (index < above) continue;
    const texts = cells.map(textOf);
    if (texts.every((text) => text.trim() === "")) continue;
    const formulas = texts.flatMap((text, column) => (text === unsaved ? [cellName(column, line)] : []));
    if (formulas.length > 0) {
      const message = `row ${line}: ${formulas.length === 1 ? "the cell" : "the cells"} ${formulas.slice(0, 5).join(", ")}${formulas.length > 5 ? ", …" : ""} ${formulas.length === 1 ? "holds a formula" : "hold formulas"} whose value was not saved, and formulas are never evaluated. Open the workbook in Excel or LibreOffice and save it.`;
      rows.push(refused(line, `row ${line}`, "FORMULA_NOT_SAVED", message));
    } else if (columns === undefined) columns = columnsOf(texts, line);
    else {
      // A row ends with its last cell that is not empty.
      while (texts.length < columns.length) texts.push("");
      rows.push(rowOfCells(texts, { line, place: `row ${line}` }, columns, maxRowBytes));
    }
    if (rows.length === rowsPerBatch) {
      yield rows;
      rows = [];
    }
  }
  yield rows;
}

/**
 * The workbook's XML as an archive without compression. The reader unpacks by the headers before each file, which may say anything, and does
 * not stop at a size; what comes out of `archive` is as large as its table says.
 */
async function repacked(archive: Archive): Promise<Buffer> {
  const files: Record<string, Uint8Array> = {};
  for (const { name } of archive.files) {
    if (!/\.xml(?:\.rels)?$/.test(name)) continue;
    const xml = Buffer.concat(await Array.fromAsync(archive.open(name)));
    files[name] = name.startsWith("xl/worksheets/") ? markFormulas(xml) : xml;
  }
  const { buffer, byteOffset, byteLength } = zipSync(files, { level: 0 });
  return Buffer.from(buffer, byteOffset, byteLength);
}

/** Stands in cells whose formula was saved without its value, as libraries write them that do not calculate. */
const unsaved = "\uE000";
const unsavedFormula =
  /(<(?:\w{1,9}:)?c\b)([^<>]*)>\s*<((?:\w{1,9}:)?)f\b(?:[^<>]*\/>|[^<>]*>[^<>]*<\/\3f>)(?:\s*(<\3v\s*\/>|<\3v>\s*<\/\3v>))?\s*<\/\3c>/g;

/** The sheet with `unsaved` in such cells: the reader gives nothing for them, as for empty ones. */
function markFormulas(xml: Buffer): Buffer {
  // As Latin-1 any bytes are kept as they are.
  const text = xml.toString("latin1");
  const marked = text.replace(unsavedFormula, (whole: string, cell: string, attributes: string, prefix: string, empty?: string) => {
    // The value of a formula may be an empty text, which is saved as such.
    if (empty !== undefined && /\st=["']str["']/.test(attributes)) return whole;
    return `${cell}${attributes.replace(/\st=(?:"[^"]*"|'[^']*')/, "")} t="str"><${prefix}v>&#xE000;</${prefix}v></${prefix}c>`;
  });
  return marked === text ? xml : Buffer.from(marked, "latin1");
}

/** Name of a cell by its column from 0 and its row from 1: `B4`. */
function cellName(column: number, row: number): string {
  let letters = "";
  for (let left = column + 1; left > 0; left = Math.floor((left - 1) / 26)) letters = String.fromCharCode(65 + ((left - 1) % 26)) + letters;
  return `${letters}${row}`;
}

const filledCells = (row: readonly (CellValue | null)[]): number => row.filter((cell) => textOf(cell).trim() !== "").length;
const isFilled = (row: readonly (CellValue | null)[]): boolean => filledCells(row) > 0;

/** Rows of a title, often in merged cells, which may stand above a table. */
const mostTitles = 5;

/** How many rows stand above the one that names the columns: those with a single cell, where most rows of the sheet have several. */
function titleRows(data: readonly (readonly (CellValue | null)[])[]): number {
  const header = data.findIndex((row) => filledCells(row) > 1);
  if (header <= 0 || data.slice(0, header).filter(isFilled).length > mostTitles || !data.slice(0, header).some(isFilled)) return 0;
  const below = data.slice(header + 1, header + 21).filter(isFilled);
  return 2 * below.filter((row) => filledCells(row) > 1).length > below.length ? header : 0;
}

function textOf(cell: CellValue | null): string {
  if (cell === null) return "";
  if (cell instanceof Date) return cell.toISOString().replace("T00:00:00.000Z", "");
  return String(cell);
}
