/** All datasets, newest first. */
import type { DatasetState } from "@loraline/contracts";
import { useInfiniteQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { type ReactNode, useState } from "react";
import { datasetsQuery } from "../data/api.ts";
import { bytes, count, time } from "../data/format.ts";
import { useTexts } from "../texts/texts.tsx";
import { Badge, Card, Older, Page } from "../ui/controls.tsx";
import { Empty, Loaded } from "../ui/states.tsx";

const tones = { importing: "active", received: "active", ingested: "good", rejected: "bad", deleted: "plain" } as const;

export function DatasetBadge({ dataset: { status } }: { dataset: DatasetState }): ReactNode {
  const t = useTexts();
  return <Badge tone={tones[status]}>{t.datasets.statuses[status]}</Badge>;
}

export function Datasets(): ReactNode {
  const t = useTexts();
  const query = useInfiniteQuery(datasetsQuery);
  const [search, setSearch] = useState("");
  return (
    <Page
      title={t.datasets.title}
      end={
        <Link to="/new" className="button primary">
          {t.datasets.upload}
        </Link>
      }
    >
      <Card>
        <Loaded query={query} lines={5}>
          {({ pages }) => {
            const data = pages.flatMap((page) => page.data);
            if (data.length === 0) return <Empty text={t.datasets.empty} />;
            const shown = data.filter(({ filename }) => filename.toLowerCase().includes(search.toLowerCase()));
            return (
              <>
                {data.length > 8 && (
                  <input
                    className="input"
                    type="search"
                    aria-label={t.common.search}
                    placeholder={t.common.search}
                    value={search}
                    onChange={(event) => setSearch(event.target.value)}
                  />
                )}
                {shown.length === 0 && <p className="soft">{t.common.noMatch}</p>}
                <div className="table-frame" tabIndex={0} role="group" aria-label={t.datasets.title}>
                  <table>
                    <thead>
                      <tr>
                        <th>{t.datasets.file}</th>
                        <th>{t.datasets.status}</th>
                        <th className="num">{t.datasets.records}</th>
                        <th className="num">{t.datasets.rejections}</th>
                        <th>{t.datasets.uploaded}</th>
                      </tr>
                    </thead>
                    <tbody>
                      {shown.map((dataset) => (
                        <tr key={dataset.datasetId}>
                          <td className="wrap">
                            <Link to="/datasets/$datasetId" params={{ datasetId: dataset.datasetId }}>
                              {dataset.filename}
                            </Link>{" "}
                            {dataset.blob !== null && <span className="small soft">{bytes(dataset.blob.size)}</span>}
                          </td>
                          <td>
                            <DatasetBadge dataset={dataset} />
                          </td>
                          <td className="num">{dataset.records === null ? "–" : count(dataset.records, t.language)}</td>
                          <td className="num">{dataset.rejections === null ? "–" : count(dataset.rejections, t.language)}</td>
                          <td className="when">{time(dataset.receivedAt, t.language)}</td>
                        </tr>
                      ))}
                    </tbody>
                  </table>
                </div>
                <Older of={query} />
              </>
            );
          }}
        </Loaded>
      </Card>
    </Page>
  );
}
