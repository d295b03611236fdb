/** Counts what came out of a file while it is read. */
import type { BlobRef, DatasetReport, Rec, Rejection } from "@loraline/contracts";

const shownRejections = 100;
const shownLines = 20;

export interface ReportBuilder {
  add(batch: { records: readonly Rec[]; rejections: readonly Rejection[] }): void;
  /** The report so far; `allRejections` refers to every rejection. */
  report(allRejections: BlobRef | null): DatasetReport;
}

export function createReport(): ReportBuilder {
  let records = 0;
  let rejections = 0;
  let exactDuplicates = 0;
  const formats: Record<string, number> = {};
  const reasons: Record<string, number> = {};
  const firstRejections: Rejection[] = [];
  /** 52 bits of each id: a millionth of the memory of the rows, and wrong by one in some ten thousand files of a million rows. */
  const seen = new Set<number>();
  const unused = { count: 0, keys: new Map<string, number>(), lines: [] as number[] };

  return {
    add(batch) {
      for (const record of batch.records) {
        records++;
        formats[record.meta.format] = (formats[record.meta.format] ?? 0) + 1;
        const short = Number.parseInt(record.id.slice("sha256:".length, "sha256:".length + 13), 16);
        if (seen.has(short)) exactDuplicates++;
        else seen.add(short);
        if (record.meta.unusedKeys !== undefined) {
          unused.count++;
          if (unused.lines.length < shownLines) unused.lines.push(record.meta.line);
          for (const key of record.meta.unusedKeys) {
            if (unused.keys.size < 50 || unused.keys.has(key)) unused.keys.set(key, (unused.keys.get(key) ?? 0) + 1);
          }
        }
      }
      for (const rejection of batch.rejections) {
        rejections++;
        reasons[rejection.code] = (reasons[rejection.code] ?? 0) + 1;
        if (firstRejections.length < shownRejections) firstRejections.push(rejection);
      }
    },
    report(allRejections) {
      const warnings: DatasetReport["warnings"] = [];
      if (unused.count > 0) {
        const keys = [...unused.keys].sort(([a, x], [b, y]) => y - x || (a < b ? -1 : 1)).map(([key, count]) => `${key} (${count})`);
        const message = `fields that no record keeps: ${keys.join(", ")}. Rename them if they matter.`;
        warnings.push({ code: "UNUSED_KEYS", count: unused.count, message, lines: unused.lines });
      }
      if (exactDuplicates > 0) {
        const message = `${exactDuplicates} records say exactly what another record says`;
        warnings.push({ code: "EXACT_DUPLICATES", count: exactDuplicates, message, lines: [] });
      }
      return {
        rows: records + rejections,
        records,
        rejections,
        formats: sorted(formats),
        reasons: sorted(reasons),
        exactDuplicates,
        warnings,
        firstRejections,
        allRejections,
      };
    },
  };
}

const sorted = (counts: Record<string, number>): Record<string, number> =>
  Object.fromEntries(Object.entries(counts).sort(([a], [b]) => (a < b ? -1 : 1)));
