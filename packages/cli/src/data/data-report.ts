/** Pure: what `data check` found, as a page that needs no knowledge of the project. */
import type { DatasetReport, Lengths, Rejection, Sample, TokenReport } from "@loraline/contracts";
import { bold, byteWords, dim, green, marksTrained, red, wrap, yellow } from "../terminal.ts";

interface CheckedData {
  report: DatasetReport;
  rejections: readonly Rejection[];
  /** undefined: no base was named. */
  tokens: TokenReport | undefined;
}

const shownRejections = 10;
const barWidth = 24;

export function describeData(file: string, { report, rejections, tokens }: CheckedData, columns: number): string[] {
  const { rows, records, rejections: refused } = report;
  const lines = [
    `${bold(file)}: ${count(rows, "row")} = ${green(count(records, "record"))} + ${(refused > 0 ? red : dim)(count(refused, "rejection"))}`,
    "",
    ...section("formats", [listOf(report.formats) || "none"]),
    ...section("rejected", describeRejections(report, rejections, columns)),
    ...section("pictures", describePictures(report.pictures ?? null)),
    ...section("length", describeLengths(report.characters ?? null, "characters")),
    ...section("tokens", tokens === undefined ? [dim("`loraline data check FILE --base DIR|NAME` counts them")] : describeTokens(tokens)),
    ...section("answers", report.preferences ? describeAnswers(report.preferences) : []),
    ...section("repeated", describeDuplicates(report)),
    ...section(
      "labels",
      describeShares(
        report.labels ?? {},
        Object.values(report.labels ?? {}).reduce((sum, many) => sum + many, 0),
      ),
    ),
    ...section("languages", describeShares(report.languages?.counts ?? {}, report.languages?.examined ?? 0)),
    ...section("warnings", describeWarnings(report)),
  ];
  if ((report.samples ?? []).length > 0) {
    lines.push(
      "",
      `${bold("samples")}: ${marksTrained ? `what is ${green("green")}` : "what stands in ⟦ ⟧"} is learned, the rest is only read`,
    );
    for (const sample of report.samples ?? []) lines.push("", ...describeSample(sample));
  }
  return lines;
}

export const describeWarnings = ({ warnings }: Pick<DatasetReport, "warnings">): string[] =>
  warnings.map(({ code, message, lines }) => `${yellow(code)} ${message}${linesOf(lines)}`);

/** For whoever starts a run: what of the data it leaves out. */
export function describeLeftOut(
  { rows, rejections, reasons, firstRejections }: Pick<DatasetReport, "rows" | "rejections" | "reasons" | "firstRejections">,
  datasetId: string,
): string[] {
  if (rejections === 0) return [];
  const which = `${listOf(reasons)}${linesOf(firstRejections.map(({ line }) => line))}`;
  const why = `\`loraline data report ${datasetId}\` says why.`;
  return [`${yellow("left out")} ${rejections.toLocaleString("en")} of ${count(rows, "row")} cannot be used: ${which}. ${why}`];
}

/** A record as it is trained on. */
export function describeSample({ line, format, segments }: Sample): string[] {
  const text = segments.map((segment) => (segment.trained ? trained(segment.text) : segment.text)).join("");
  return [
    dim(`line ${line}, ${format}`),
    ...text
      .trimEnd()
      .split("\n")
      .map((one) => `  ${one}`),
  ];
}

/** Marks text as trained. Each line is marked by itself, because some terminals end a colour at the end of a line. */
const trained = (text: string): string =>
  text
    .split("\n")
    .map((line) => (line === "" ? "" : marksTrained ? green(line) : `⟦${line}⟧`))
    .join("\n");

const section = (label: string, body: readonly string[]): string[] =>
  body.map((text, index) => `${dim((index === 0 ? label : "").padEnd(11))}${text}`);

const count = (n: number, noun: string): string => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
const percent = (n: number, of: number): string => {
  const share = of === 0 ? 0 : (100 * n) / of;
  return `${share > 0 && share < 0.1 ? "< 0.1" : share.toFixed(share === 100 || share === 0 ? 0 : 1)} %`;
};
const listOf = (counts: Record<string, number>): string =>
  Object.entries(counts)
    .map(([name, n]) => `${name} ${n.toLocaleString("en")}`)
    .join(", ");
const linesOf = (lines: readonly number[]): string =>
  lines.length === 0
    ? ""
    : dim(` (${lines.length === 1 ? "line" : "lines"} ${lines.slice(0, 8).join(", ")}${lines.length > 8 ? ", …" : ""})`);

/** Each reason once, with the lines that it was given for. */
function describeRejections(report: DatasetReport, rejections: readonly Rejection[], columns: number): string[] {
  if (report.rejections === 0) return ["none"];
  const groups = new Map<string, { code: string; said: string; lines: number[] }>();
  for (const { line, code, message } of rejections) {
    // The message begins with the place, which stands in front of it already.
    const said = message.replace(/^(?:line|row|element) \d+(?: \(line \d+\))?: /, "");
    // The place inside of a line, and what stands there, differ from line to line; the fault does not. Names of fields stand in backticks.
    const key = `${code} ${said.replace(/ at column \d+|(?<=Unexpected token ).*?(?= is not valid JSON)|"[^"]*"|\([^()]*\)|\b[A-Z]{0,3}\d+\b/gs, "")}`;
    const group = groups.get(key) ?? { code, said, lines: [] };
    groups.set(key, group);
    group.lines.push(line);
  }
  const shown = [...groups.values()].slice(0, shownRejections);
  const told = shown.reduce((sum, { lines }) => sum + lines.length, 0);
  const more = report.rejections - told;
  return [
    listOf(report.reasons),
    ...shown.flatMap(({ code, said, lines }) => [
      `${placesOf(lines)}  ${red(code)}`,
      ...wrap(clip(said, 400), Math.max(40, columns - 14)).map((text) => `  ${text}`),
    ]),
    ...(more > 0 ? [dim(`… and ${more.toLocaleString("en")} more: --json lists all`)] : []),
  ];
}

const placesOf = (lines: readonly number[]): string =>
  lines.length === 1
    ? `line ${lines[0]}`
    : `${count(lines.length, "row")}: lines ${lines.slice(0, 5).join(", ")}${lines.length > 5 ? ", …" : ""}`;

function describePictures(pictures: (DatasetReport["pictures"] & {}) | null): string[] {
  if (pictures === null) return [];
  const { records, count: different, bytes, notFetched, samples } = pictures;
  return [
    `${count(different, "picture")} (${byteWords(bytes)}) in ${count(records, "record")}${notFetched > 0 ? `, ${count(notFetched, "picture")} at URLs` : ""}`,
    ...samples.map(({ line, digest, media_type, width, height }) =>
      dim(`line ${line}: ${digest}  ${media_type.slice(6)} ${width} × ${height}`),
    ),
  ];
}

function describeLengths(lengths: Lengths | null, unit: string): string[] {
  if (lengths === null) return [];
  const { p50, p95, max, histogram } = lengths;
  const most = Math.max(1, ...histogram.map((bar) => bar.count));
  const width = Math.max(...histogram.map((bar) => String(bar.upTo).length));
  return [
    `half ≤ ${n(p50)}, 95 % ≤ ${n(p95)}, longest ${n(max)} ${unit}`,
    ...histogram.map(
      (bar) =>
        `${dim(`≤ ${String(bar.upTo).padStart(width)}`)} ${"█".repeat(Math.ceil((barWidth * bar.count) / most)).padEnd(barWidth)} ${n(bar.count)}`,
    ),
  ];
}
const n = (value: number): string => value.toLocaleString("en");

function describeTokens({ base, template, maxLength, lengths, supervised, dropped, atMaxLength }: TokenReport): string[] {
  const reasons = Object.entries(dropped);
  if (lengths.count === 0) {
    const why =
      reasons.length === 0 ? "there are no records" : `left out: ${reasons.map(([code, many]) => `${many} (${code})`).join(", ")}`;
    return [yellow(`none with ${base}: ${why}`)];
  }
  return [
    `${n(lengths.total)} with ${base} (template ${template}), ${percent(supervised, lengths.total)} of them learned`,
    ...describeLengths(lengths, "tokens"),
    ...(reasons.length === 0
      ? [`max_length ${n(maxLength)} keeps every record`]
      : [yellow(`max_length ${n(maxLength)} loses ${reasons.map(([code, many]) => `${many} (${code})`).join(", ")}`)]),
    ...atMaxLength.map(
      ({ maxLength: at, tooLong }) =>
        `${dim(`at ${n(at).padStart(7)}`)}  ${tooLong === 0 ? "none too long" : `${n(tooLong)} too long (${percent(tooLong, lengths.count)})`}`,
    ),
  ];
}

function describeDuplicates({ exactDuplicates, nearDuplicates, overlap }: DatasetReport): string[] {
  const near = nearDuplicates ?? { examined: 0, count: 0, examples: [] };
  const lines = [
    `${n(exactDuplicates)} exactly, ${n(near.count)} nearly${near.count === 0 ? "" : ` (of the first ${n(near.examined)} records)`}`,
    ...near.examples.slice(0, 5).map(({ line, of, similarity }) => dim(`line ${line} is ${Math.round(100 * similarity)} % line ${of}`)),
  ];
  if (overlap !== null && overlap !== undefined) {
    lines.push(`${n(overlap.exact.count)} exactly and ${n(overlap.near.count)} nearly in the validation file`);
  }
  return lines;
}

function describeAnswers(of: NonNullable<DatasetReport["preferences"]>): string[] {
  const { pairs, chosen, rejected, longerWins, shorterWins, identical, ties, contradictions, good, bad } = of;
  const lengths = (one: Lengths | null): string => (one === null ? "-" : `half ≤ ${n(one.p50)}, 95 % ≤ ${n(one.p95)}`);
  return [
    ...(pairs === 0
      ? []
      : [
          `${count(pairs, "pair")}: chosen ${lengths(chosen)}, rejected ${lengths(rejected)} characters`,
          `the longer answer is chosen in ${percent(longerWins, pairs)}, the shorter in ${percent(shorterWins, pairs)}`,
        ]),
    ...(good + bad === 0 ? [] : [`${n(good)} labelled good, ${n(bad)} bad`]),
    `${count(ties.count, "list")} with ties, ${count(contradictions.count, "contradiction")}, ${n(identical)} with equal sides (rejected)`,
  ];
}

function describeShares(counts: Record<string, number>, of: number): string[] {
  const entries = Object.entries(counts);
  if (entries.length === 0) return [];
  const shown = entries.slice(0, 12).map(([name, many]) => `${name} ${percent(many, of)}`);
  return [shown.join(", ") + (entries.length > 12 ? `, and ${entries.length - 12} more` : "")];
}

const clip = (text: string, most: number): string => (text.length <= most ? text : `${text.slice(0, most - 1).toWellFormed()}…`);
