/** What was found in a file: what is usable, what is not and why, and what will be learned of it. */
import type { DatasetReport } from "@loraline/contracts";
import { type ReactNode, useState } from "react";
import { api } from "../../data/api.ts";
import { bytes } from "../../data/format.ts";
import { saveResponse } from "../../data/save-file.ts";
import { useTexts } from "../../texts/texts.tsx";
import { Badge, Card } from "../../ui/controls.tsx";
import { Remedies, Words } from "../../ui/states.tsx";

const firstShown = 5;

export function Report({ report, datasetId }: { report: DatasetReport; datasetId: string }): ReactNode {
  const t = useTexts();
  const { rows, records, rejections, formats, warnings, exactDuplicates, preferences, pictures } = report;
  return (
    <>
      <Card title={t.newRun.report}>
        <p>
          <strong>{t.newRun.usable(records, rows)}</strong>
          {exactDuplicates > 0 && ` · ${t.newRun.duplicates(exactDuplicates)}`}
        </p>
        <p className="row">
          <span className="soft">{t.newRun.formats}</span>
          {Object.entries(formats).map(([format, amount]) => (
            <Badge key={format} tone="plain">
              {format} · {amount.toLocaleString(t.language)}
            </Badge>
          ))}
        </p>
        {preferences && preferences.pairs > 0 && (
          <p>
            {t.newRun.pairs(preferences.pairs)}{" "}
            {t.newRun.longerWins(
              (preferences.longerWins / preferences.pairs).toLocaleString(t.language, { style: "percent", maximumFractionDigits: 0 }),
            )}
          </p>
        )}
        {pictures && <Pictures pictures={pictures} datasetId={datasetId} />}
        {rejections > 0 && <Rejections report={report} datasetId={datasetId} />}
        {warnings.length > 0 && (
          <div className="stack-s">
            <h3>{t.newRun.warnings}</h3>
            <ul className="stack-s">
              {warnings.map(({ code, message, lines }) => (
                <li key={code} className="note warn">
                  <Remedies codes={[code]} isTranslatedOnly />
                  <span lang="en">
                    <Words text={message} />
                  </span>
                  {lines.length > 0 && <span className="small">{lines.slice(0, 8).map(t.newRun.line).join(", ")}</span>}
                </li>
              ))}
            </ul>
          </div>
        )}
      </Card>
      <Samples report={report} />
    </>
  );
}

function Rejections({
  report: { rejections, firstRejections, allRejections },
  datasetId,
}: {
  report: DatasetReport;
  datasetId: string;
}): ReactNode {
  const t = useTexts();
  const [isAll, setAll] = useState(false);
  const shown = isAll ? firstRejections : firstRejections.slice(0, firstShown);
  return (
    <div className="note warn">
      <h3>{t.newRun.rejections(rejections)}</h3>
      <ul className="stack-s small">
        {shown.map(({ file, line, code, message }) => (
          <li key={`${file ?? ""}${line}${code}`}>
            <strong>{t.newRun.line(line)}</strong>
            {file !== undefined && ` (${file})`}:{" "}
            <span lang="en">
              <Words text={message.replace(/^line \d+: /, "")} />
            </span>
          </li>
        ))}
      </ul>
      <Remedies codes={shown.map(({ code }) => code)} />
      <div className="row">
        {firstRejections.length > firstShown && (
          <button type="button" className="button small" aria-expanded={isAll} onClick={() => setAll(!isAll)}>
            {isAll ? t.common.less : t.common.more}
          </button>
        )}
        {allRejections !== null && (
          <button
            type="button"
            className="button small"
            onClick={() => void api.listRejections({ dataset_id: datasetId }).then((answer) => saveResponse(answer, "rejections.jsonl"))}
          >
            {t.newRun.allRejections}
          </button>
        )}
      </div>
    </div>
  );
}

/** Older reports have no thumbnails: pictures come as they were uploaded, and the browser makes them small. Larger ones are shown when somebody asks for them. */
const smallEnough = 2_000_000;

function Pictures({ pictures, datasetId }: { pictures: NonNullable<DatasetReport["pictures"]>; datasetId: string }): ReactNode {
  const t = useTexts();
  const { count, records, samples } = pictures;
  return (
    <div className="stack-s">
      <p>
        {t.newRun.pictures(count, records)} · {bytes(pictures.bytes)}
      </p>
      <ul className="row">
        {samples.map(({ digest, line, width, height, thumbnail, bytes: size }) => (
          <li key={digest}>
            <a
              href={`/v1/loraline/datasets/${datasetId}/pictures/${digest}`}
              target="_blank"
              rel="noreferrer"
              title={`${t.newRun.line(line)}: ${width} × ${height}, ${bytes(size)}`}
            >
              {thumbnail === undefined && size > smallEnough ? (
                t.newRun.pictureOf(line)
              ) : (
                <img
                  className="thumbnail"
                  src={thumbnail ?? `/v1/loraline/datasets/${datasetId}/pictures/${digest}`}
                  alt={t.newRun.pictureOf(line)}
                  loading="lazy"
                  decoding="async"
                />
              )}
            </a>
          </li>
        ))}
      </ul>
    </div>
  );
}

function Samples({ report: { samples } }: { report: DatasetReport }): ReactNode {
  const t = useTexts();
  const [isAll, setAll] = useState(false);
  if (!samples || samples.length === 0) return null;
  const shown = isAll ? samples : samples.slice(0, 3);
  return (
    <Card title={t.newRun.samples} end={<span className="small soft">{t.newRun.samplesHint}</span>}>
      <ul className="stack-s">
        {shown.map(({ line, format, segments }) => (
          <li key={line} className="stack-s">
            <span className="small soft">
              {t.newRun.line(line)} · {format}
            </span>
            <p className="sample" tabIndex={0} role="group" aria-label={t.newRun.line(line)}>
              {segments.map(({ text, trained }, at) => (trained ? <mark key={at}>{text}</mark> : <span key={at}>{text}</span>))}
            </p>
          </li>
        ))}
      </ul>
      {samples.length > 3 && (
        <div>
          <button type="button" className="button small" aria-expanded={isAll} onClick={() => setAll(!isAll)}>
            {isAll ? t.common.less : t.common.more}
          </button>
        </div>
      )}
    </Card>
  );
}
