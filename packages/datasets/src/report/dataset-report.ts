/** The report on a file: counts and samples, collected while it is read. Memory grows by 16 to 32 bytes a record only (see the bounds at each counter). */
import { hash } from "node:crypto";
import type { BlobRef, DatasetReport, Digest, Rec, Rejection, Sample } from "@loraline/contracts";
import type { Note } from "../containers/raw-rows.ts";
import { createAnswerComparison, warnOfAnswers } from "./compare-answers.ts";
import { Counts, Finding, Findings, LeastByHash, NumberSet, shownLines } from "./bounded-counters.ts";
import { comparedText, createNearDuplicates, type NearDuplicates } from "./near-duplicates.ts";
import { eld } from "eld/extrasmall";
import { findPersonalData } from "./find-personal-data.ts";
import { findSecrets } from "./find-secrets.ts";
import { findControlTokens, findGarbledText, type Hit } from "./inspect-text.ts";
import { countLengths } from "./measure-lengths.ts";
import { segmentsOf, textsOf } from "./record-text.ts";

const shownRejections = 100;
const shownLabels = 50;
const shownSamples = 20;
const sampleCharacters = 2000;
const shownPictures = 12;
/** Most records whose language is detected: detecting it takes longer than reading the record. */
const languageRecords = 20_000;
/** Most questions of triples that are remembered, to be compared with later ones. */
const mostTriples = 200_000;

interface ReportBuilder {
  add(batch: { records: readonly Rec[]; rejections: readonly Rejection[] }): Promise<void>;
  /** @returns the report so far; `allRejections` is the reference of the object with every rejection; `notes` are the reader's. */
  report(allRejections: BlobRef | null, notes?: readonly Note[]): DatasetReport;
  /** @returns the records that are shown as samples. */
  samples(): Rec[];
}

/** The contents of a file, for comparing another file with it. */
export interface Contents {
  ids: ReadonlySet<number>;
  near: Pick<NearDuplicates, "find">;
}

/** The first 52 bits of an id. They take little memory, and are ambiguous once in some ten thousand files of a million rows. */
const shortId = (id: string): number => Number.parseInt(id.slice("sha256:".length, "sha256:".length + 13), 16);

/** The contents of a validation file, with which training records are compared. */
export async function readContents(batches: AsyncIterable<{ records: readonly Rec[] }>): Promise<Contents> {
  const ids = new Set<number>();
  const near = createNearDuplicates();
  for await (const { records } of batches) {
    for (const record of records) {
      ids.add(shortId(record.id));
      near.add(comparedText(record), record.meta.line);
    }
  }
  return { ids, near };
}

/** @param validation - contents of the validation file, when there is one. */
export function createReport({
  validation,
  thumbnails,
}: { validation?: Contents | undefined; thumbnails?: ReadonlyMap<Digest, string> } = {}): ReportBuilder {
  let records = 0;
  let rejections = 0;
  let exactDuplicates = 0;
  const formats = new Counts();
  const kinds = new Counts();
  const reasons = new Counts();
  const labels = new Counts(10_000);
  const languages = new Counts();
  const firstRejections: Rejection[] = [];
  const seen = new NumberSet();
  const near = createNearDuplicates();
  const nearDuplicates: NonNullable<DatasetReport["nearDuplicates"]> = { examined: 0, count: 0, examples: [] };
  const unused = { lines: new Finding(), keys: new Counts(50) };
  const overlap = { exact: new Finding(), near: new Finding() };
  const garbled = new Findings();
  const found = { controlTokens: new Findings(), secrets: new Findings(), personalData: new Findings(), redacted: new Findings() };
  const characters = countLengths();
  const answers = createAnswerComparison();
  const samples = new LeastByHash(shownSamples);
  let examinedLanguages = 0;
  /** Question of a triple to its first answer, both as hashes: they may be of any length. */
  const objects = new Map<string, string>();
  const severalObjects = new Finding();

  const pictures = { records: 0, count: 0, bytes: 0, notFetched: 0, samples: [] as NonNullable<DatasetReport["pictures"]>["samples"] };
  const differentPictures = new NumberSet();
  const addPictures = ({ media = [], meta: { line } }: Rec): void => {
    if (media.length > 0) pictures.records++;
    for (const { ref, bytes, media_type, width, height } of media) {
      if (bytes === undefined || media_type === undefined || width === undefined || height === undefined) pictures.notFetched++;
      else if (differentPictures.add(shortId(ref))) {
        pictures.count++;
        pictures.bytes += bytes;
        if (pictures.samples.length >= shownPictures) continue;
        const thumbnail = thumbnails?.get(ref as Digest);
        pictures.samples.push({ line, digest: ref as Digest, bytes, media_type, width, height, ...(thumbnail && { thumbnail }) });
      }
    }
  };

  const addRecord = (record: Rec, text: string): void => {
    const { line, format, unusedKeys, redacted } = record.meta;
    records++;
    for (const kind of redacted ?? []) found.redacted.add(kind, line);
    formats.add(format);
    kinds.add(record.kind);
    answers.add(record);
    characters.add(text.length);
    const id = shortId(record.id);
    const exact = !seen.add(id);
    if (exact) exactDuplicates++;
    const compared = comparedText(record);
    const like = near.add(compared, line);
    if (like !== undefined && !exact) {
      nearDuplicates.count++;
      if (nearDuplicates.examples.length < shownLines) nearDuplicates.examples.push({ line, ...like });
    }
    if (validation?.ids.has(id) === true) overlap.exact.add(line);
    else if (validation?.near.find(compared) !== undefined) overlap.near.add(line);
    if (record.task === "classification") labels.add(record.messages?.findLast(({ role }) => role === "assistant")?.content ?? "");
    if (record.task === "kg") {
      const [question, answer] = [-2, -1].map((at) => hash("sha256", record.messages?.at(at)?.content ?? "", "base64").slice(0, 12)) as [
        string,
        string,
      ];
      const first = objects.get(question);
      if (first !== undefined && first !== answer) severalObjects.add(line);
      else if (objects.size < mostTriples) objects.set(question, answer);
    }
    if (examinedLanguages < languageRecords) {
      examinedLanguages++;
      languages.add(eld.detect(text.slice(0, 1000)).language || "?");
    }
    if (unusedKeys !== undefined) {
      unused.lines.add(line);
      for (const key of unusedKeys) unused.keys.add(key);
    }
    addPictures(record);
    samples.add(id, record);
  };

  return {
    async add(batch) {
      const texts = batch.records.map((record) => textsOf(record).join("\n"));
      for (const [index, record] of batch.records.entries()) addRecord(record, texts[index] as string);
      const note = (into: Findings, hits: readonly Hit[]): void => {
        for (const { text, kind } of hits) into.add(kind, batch.records[text]?.meta.line ?? 0);
      };
      note(found.controlTokens, findControlTokens(texts));
      note(garbled, findGarbledText(texts));
      note(found.personalData, findPersonalData(texts));
      if (texts.length > 0) note(found.secrets, await findSecrets(texts));
      for (const rejection of batch.rejections) {
        rejections++;
        reasons.add(rejection.code);
        if (firstRejections.length < shownRejections) firstRejections.push(rejection);
      }
    },
    samples: () => samples.records,
    report(allRejections, notes = []) {
      const said = {
        rows: records + rejections,
        records,
        rejections,
        formats: formats.sorted(),
        kinds: kinds.sorted(),
        reasons: reasons.sorted(),
        exactDuplicates,
        nearDuplicates: { ...nearDuplicates, examined: near.examined },
        overlap: validation === undefined ? null : { exact: overlap.exact.value, near: overlap.near.value },
        characters: characters.lengths(),
        preferences: answers.value(reasons.sorted()["SAME_ANSWERS"] ?? 0),
        labels: labels.size === 0 ? null : labels.largest(shownLabels),
        languages: { examined: examinedLanguages, counts: languages.largest(shownLabels) },
        controlTokens: found.controlTokens.value,
        secrets: found.secrets.value,
        personalData: found.personalData.value,
        redacted: found.redacted.value,
        samples: samples.records.map(sampleOf),
        pictures: pictures.records === 0 ? null : { ...pictures },
        firstRejections,
        allRejections,
      };
      const told: DatasetReport["warnings"] = notes.map(({ code, message }) => ({ code, message, count: 1, lines: [] }));
      return {
        ...said,
        warnings: told.concat(
          warningsOf(
            said,
            { lines: unused.lines.value, keys: unused.keys.largest(50) },
            { severalObjects: severalObjects.value, garbled: garbled.value },
          ),
        ),
      };
    },
  };
}

function sampleOf(record: Rec): Sample {
  let room = sampleCharacters;
  const segments: Sample["segments"] = [];
  for (const { text, trained } of segmentsOf(record)) {
    if (room <= 0) break;
    // The cut must not be in the middle of a character.
    segments.push({ text: text.length > room ? `${text.slice(0, room).toWellFormed()}…` : text, trained });
    room -= text.length;
  }
  return { line: record.meta.line, format: record.meta.format, segments };
}

/** @returns warnings in sentences, for a person to read before paying for a training. */
function warningsOf(
  report: Omit<DatasetReport, "warnings">,
  unused: { lines: { count: number; lines: number[] }; keys: Record<string, number> },
  { severalObjects, garbled }: { severalObjects: { count: number; lines: number[] }; garbled: DatasetReport["secrets"] },
): DatasetReport["warnings"] {
  const warnings: DatasetReport["warnings"] = [];
  const warn = (code: string, count: number, message: string, lines: number[] = []): void => {
    if (count > 0) warnings.push({ code, count, message, lines });
  };
  const named = (counts: Record<string, number>): string =>
    Object.entries(counts)
      .map(([key, count]) => `${key} (${count})`)
      .join(", ");
  const findings = (code: string, of: DatasetReport["secrets"], message: (kinds: string) => string): void => {
    const entries = Object.entries(of ?? {});
    const lines = [...new Set(entries.flatMap(([, finding]) => finding.lines))].sort((a, b) => a - b).slice(0, shownLines);
    const kinds = named(Object.fromEntries(entries.map(([kind, { count }]) => [kind, count])));
    warn(
      code,
      entries.reduce((sum, [, { count }]) => sum + count, 0),
      message(kinds),
      lines,
    );
  };

  warn(
    "UNUSED_KEYS",
    unused.lines.count,
    `fields that no record keeps: ${named(unused.keys)}. Rename them if they matter.`,
    unused.lines.lines,
  );
  const unfetched = report.pictures?.notFetched ?? 0;
  warn(
    "PICTURES_NOT_FETCHED",
    unfetched,
    `${unfetched} ${unfetched === 1 ? "picture is" : "pictures are"} at URLs. The server fetches them when the file is uploaded, and rejects rows whose pictures it cannot get.`,
  );
  const one = report.exactDuplicates === 1;
  warn(
    "EXACT_DUPLICATES",
    report.exactDuplicates,
    `${report.exactDuplicates} ${one ? "record says" : "records say"} exactly what another record says`,
  );
  const near = report.nearDuplicates;
  warn(
    "NEAR_DUPLICATES",
    near?.count ?? 0,
    `${near?.count} ${near?.count === 1 ? "record says" : "records say"} nearly what an earlier one says`,
    near?.examples.map(({ line }) => line),
  );
  const { exact, near: nearly } = report.overlap ?? { exact: { count: 0, lines: [] }, near: { count: 0, lines: [] } };
  warn("IN_VALIDATION", exact.count, `${exact.count} are in the validation file too, which would then measure memory`, exact.lines);
  warn("NEARLY_IN_VALIDATION", nearly.count, `${nearly.count} are nearly the same as one of the validation file`, nearly.lines);
  findings(
    "CONTROL_TOKENS",
    report.controlTokens,
    (kinds) =>
      `texts spell control tokens: ${kinds}. They are trained as plain text, never as control tokens. If these are conversations, give them as messages: the base's template writes the tokens then, and only answers are learned.`,
  );
  findings(
    "GARBLED_TEXT",
    garbled,
    (kinds) => `texts look like UTF-8 that was read in another encoding: ${kinds}. Export them again as UTF-8, or repair them (ftfy).`,
  );
  findings(
    "SECRETS",
    report.secrets,
    (kinds) => `texts look like secrets: ${kinds}. The adapter would learn to say them: remove them, and revoke real ones.`,
  );
  findings(
    "PERSONAL_DATA",
    report.personalData,
    (kinds) => `personal data in texts: ${kinds}. Remove or replace them unless you may use them.`,
  );
  findings(
    "REDACTED",
    report.redacted,
    (kinds) =>
      `replaced by their kind, as the mapping's redact asks: ${kinds}. The uploaded file itself has them still, until it is deleted.`,
  );
  const classes = Object.entries(report.labels ?? {});
  const [most, least] = [classes[0], classes.at(-1)];
  if (most !== undefined && least !== undefined && classes.length > 1 && most[1] >= 10 * least[1]) {
    warn("LABELS_UNBALANCED", most[1], `label "${most[0]}" is ${Math.round(most[1] / least[1])} times as frequent as "${least[0]}"`);
  }
  warn(
    "SEVERAL_OBJECTS",
    severalObjects.count,
    `${severalObjects.count} triples answer the question of an earlier one otherwise. Put all objects of a subject and predicate into one row.`,
    severalObjects.lines,
  );
  const alone = report.formats["preferred-response"] ?? 0;
  warn(
    "PREFERRED_ALONE",
    alone,
    `${alone} rows have a preferred response without what it was preferred to: they are trained as plain answers. Put \`responses\` before them to keep them as preferences.`,
  );
  if (report.preferences) warnOfAnswers(report.preferences, warn);
  const untrained = ["preference", "ranked", "unpaired"].reduce((sum, kind) => sum + (report.kinds[kind] ?? 0), 0);
  warn(
    "NOT_FOR_SFT",
    untrained,
    `${untrained} ${untrained === 1 ? "record is a preference" : "records are preferences"}: trained by the methods dpo, orpo, simpo and kto, and left out by supervised fine-tuning`,
  );
  return warnings;
}
