/** One dataset: its report, the runs that used it, and what its deletion means. */
import { useMutation, useQuery } from "@tanstack/react-query";
import { Link, useNavigate, useParams } from "@tanstack/react-router";
import { type ReactNode, useState } from "react";
import { api, datasetQuery, datasetsQuery, fileIdOf, queryClient, reportQuery } from "../data/api.ts";
import { bytes, time } from "../data/format.ts";
import { saveResponse } from "../data/save-file.ts";
import { useTexts } from "../texts/texts.tsx";
import { Card, Dialog, Page, RunBadge } from "../ui/controls.tsx";
import { ErrorNote, Loaded, Problem } from "../ui/states.tsx";
import { DatasetBadge } from "./datasets.tsx";
import { Report } from "./new-run/report.tsx";
import { Rows } from "./rows.tsx";

export function Dataset(): ReactNode {
  const t = useTexts();
  const navigate = useNavigate();
  const { datasetId } = useParams({ from: "/datasets/$datasetId" });
  const dataset = useQuery(datasetQuery(datasetId));
  const report = useQuery({ ...reportQuery(datasetId), enabled: dataset.data !== undefined && dataset.data.report !== null });
  const runs = useQuery({
    queryKey: ["runs-of", datasetId],
    queryFn: ({ signal }) => api.listRuns({ signal, query: { dataset: datasetId, limit: 50 } }),
  });
  const [asks, setAsks] = useState(false);
  const erase = useMutation({
    mutationFn: () => api.deleteFile({ file_id: fileIdOf(datasetId) }),
    onSuccess: async () => {
      await queryClient.invalidateQueries({ queryKey: datasetsQuery.queryKey });
      await navigate({ to: "/datasets" });
    },
  });
  const name = dataset.data?.filename ?? t.datasets.title;
  return (
    <Page
      title={name}
      end={
        dataset.data !== undefined && (
          <>
            {dataset.data.status === "ingested" && (
              <Link to="/new" search={{ dataset: datasetId }} className="button primary">
                {t.datasets.train}
              </Link>
            )}
            {dataset.data.blob !== null && (
              <button
                type="button"
                className="button"
                onClick={() => void api.downloadFile({ file_id: fileIdOf(datasetId) }).then((answer) => saveResponse(answer, name))}
              >
                {t.datasets.download}
              </button>
            )}
            <button type="button" className="button danger" onClick={() => setAsks(true)}>
              {t.datasets.delete}
            </button>
          </>
        )
      }
    >
      <Loaded query={dataset} lines={6}>
        {(known) => (
          <>
            <p className="row">
              <DatasetBadge dataset={known} />
              <span className="soft small">
                {known.blob !== null && `${bytes(known.blob.size)} · `}
                {time(known.receivedAt, t.language)} · <code>{datasetId}</code>
              </span>
            </p>
            {known.error !== null && <Problem title={t.newRun.rejected} code={known.error.code} message={known.error.message} />}
            {known.report === null && known.error === null && <p className="soft">{t.datasets.noReport}</p>}
            {report.error !== null && <ErrorNote error={report.error} retry={() => void report.refetch()} />}
            {report.data !== undefined && <Report report={report.data} datasetId={datasetId} />}
            {known.blob !== null && known.parts.length === 0 && (
              <Rows datasetId={datasetId} filename={known.filename} size={known.blob.size} />
            )}
            <Card title={t.datasets.usedBy}>
              <Loaded query={runs}>
                {({ data }) =>
                  data.length === 0 ? (
                    <p className="soft">{t.datasets.notUsed}</p>
                  ) : (
                    <ul className="items">
                      {data.map((run) => (
                        <li key={run.runId}>
                          <span className="grow">
                            <Link to="/runs/$runId" params={{ runId: run.runId }}>
                              {run.spec.adapter}
                              {run.served !== null && ` · ${t.start.version(run.served.version)}`}
                            </Link>
                          </span>
                          <span className="when soft">{time(run.requestedAt, t.language)}</span>
                          <RunBadge run={run} />
                        </li>
                      ))}
                    </ul>
                  )
                }
              </Loaded>
            </Card>
          </>
        )}
      </Loaded>
      <Dialog title={t.datasets.deleteTitle} isOpen={asks} onClose={() => setAsks(false)}>
        <p>{t.datasets.deleteText}</p>
        {erase.error !== null && <ErrorNote error={erase.error} title={t.common.failedTitle} />}
        <div className="dialog-end">
          <button type="button" className="button" onClick={() => setAsks(false)}>
            {t.common.cancel}
          </button>
          <button type="button" className="button danger" disabled={erase.isPending} onClick={() => erase.mutate()}>
            {t.datasets.delete}
          </button>
        </div>
      </Dialog>
    </Page>
  );
}
