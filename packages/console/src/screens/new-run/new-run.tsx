/** From a file to a run: choose the data, look at what was found, choose the settings, start. */
import { useInfiniteQuery, useQuery } from "@tanstack/react-query";
import { useNavigate, useSearch } from "@tanstack/react-router";
import { type DragEvent, type ReactNode, useRef, useState } from "react";
import { datasetQuery, datasetsQuery, reportQuery, runQuery } from "../../data/api.ts";
import { useTexts } from "../../texts/texts.tsx";
import { Card, Field, Older, Page } from "../../ui/controls.tsx";
import { ErrorNote, Loaded, Loading, Problem } from "../../ui/states.tsx";
import { Report } from "./report.tsx";
import { RunSettings } from "./run-settings.tsx";
import { uploadFile } from "./upload.ts";

export function NewRun(): ReactNode {
  const t = useTexts();
  const { dataset: given, like: likeId } = useSearch({ from: "/new" });
  const like = useQuery({ ...runQuery(likeId ?? ""), enabled: likeId !== undefined });
  const dataset = given ?? like.data?.spec.dataset;
  return (
    <Page title={t.newRun.title}>
      {likeId !== undefined && like.data === undefined ? (
        <Loaded query={like}>{() => null}</Loaded>
      ) : dataset === undefined ? (
        <ChooseData />
      ) : (
        <Chosen key={dataset} datasetId={dataset} like={like.data} />
      )}
    </Page>
  );
}

export function ChooseData(): ReactNode {
  const t = useTexts();
  const navigate = useNavigate();
  const input = useRef<HTMLInputElement>(null);
  const [isOver, setOver] = useState(false);
  const [sending, setSending] = useState<{ name: string; share: number }>();
  const [error, setError] = useState<unknown>();
  const datasets = useInfiniteQuery(datasetsQuery);
  const choose = (dataset: string): void => void navigate({ to: "/new", search: { dataset } });
  const send = (file: File | undefined): void => {
    if (file === undefined) return;
    setError(undefined);
    setSending({ name: file.name, share: 0 });
    uploadFile(file, (share) => setSending({ name: file.name, share }))
      .then(choose, setError)
      .finally(() => setSending(undefined));
  };
  const drop = (event: DragEvent): void => {
    event.preventDefault();
    setOver(false);
    send(event.dataTransfer.files[0]);
  };
  const ready = datasets.data?.pages.flatMap(({ data }) => data.filter(({ status }) => status === "ingested")) ?? [];
  return (
    <>
      {error !== undefined && <ErrorNote error={error} title={t.common.failedTitle} />}
      <div
        className="drop"
        data-over={isOver}
        onDragOver={(event) => {
          event.preventDefault();
          setOver(true);
        }}
        onDragLeave={() => setOver(false)}
        onDrop={drop}
      >
        {sending === undefined ? (
          <>
            <h2>{t.newRun.drop}</h2>
            <p className="soft" style={{ maxWidth: "60ch" }}>
              {t.newRun.dropHint}
            </p>
            <button type="button" className="button primary" onClick={() => input.current?.click()}>
              {t.newRun.choose}
            </button>
            <input
              ref={input}
              type="file"
              hidden
              aria-label={t.newRun.choose}
              onChange={(event) => {
                send(event.target.files?.[0]);
                event.target.value = "";
              }}
            />
          </>
        ) : (
          <>
            <p role="status">{t.newRun.uploading(sending.name, Math.round(sending.share * 100))}</p>
            <progress className="bar" max={1} value={sending.share} aria-label={sending.name} />
          </>
        )}
      </div>
      {(ready.length > 0 || datasets.hasNextPage) && (
        <Card>
          <Field label={t.newRun.orExisting}>
            {(ids) => (
              <select {...ids} className="input" value="" onChange={(event) => choose(event.target.value)}>
                <option value="">{t.newRun.chooseDataset}</option>
                {ready.map(({ datasetId, filename, records }) => (
                  <option key={datasetId} value={datasetId}>
                    {filename} · {t.common.records(records ?? 0)}
                  </option>
                ))}
              </select>
            )}
          </Field>
          <Older of={datasets} />
        </Card>
      )}
    </>
  );
}

function Chosen({ datasetId, like }: { datasetId: string; like: Parameters<typeof RunSettings>[0]["like"] }): ReactNode {
  const t = useTexts();
  const navigate = useNavigate();
  // The stream tells when it has been read; where that is away, asking now and then does.
  const dataset = useQuery({
    ...datasetQuery(datasetId),
    refetchInterval: ({ state: { data } }) => (data === undefined || data.settledAt === null ? 2000 : false),
  });
  const isRead = dataset.data?.status === "ingested";
  const report = useQuery({ ...reportQuery(datasetId), enabled: dataset.data !== undefined && dataset.data.report !== null });
  return (
    <Loaded query={dataset}>
      {({ status, filename, error, waiting }) => (
        <>
          <div className="spread">
            <h2 className="wrap">{filename}</h2>
            <button type="button" className="button small" onClick={() => void navigate({ to: "/new", search: {} })}>
              {t.newRun.another}
            </button>
          </div>
          {(status === "received" || status === "importing") && (
            <Card>
              <p role="status">{t.newRun.reading(filename)}</p>
              {waiting && <p className="soft">{waiting.message}</p>}
              <Loading />
            </Card>
          )}
          {status === "rejected" && <Problem title={t.newRun.rejected} code={error?.code ?? null} message={error?.message ?? ""} />}
          {report.data !== undefined && <Report report={report.data} datasetId={datasetId} />}
          {isRead && report.data === undefined && <Loaded query={report}>{() => null}</Loaded>}
          {isRead && report.data !== undefined && (
            <RunSettings datasetId={datasetId} filename={filename} report={report.data} like={like} />
          )}
        </>
      )}
    </Loaded>
  );
}
