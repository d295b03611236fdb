import { useInfiniteQuery } from "@tanstack/react-query";
import type { ReactNode } from "react";
import { auditQuery } from "../../data/api.ts";
import { time } from "../../data/format.ts";
import { useTexts } from "../../texts/texts.tsx";
import { Card, Older } from "../../ui/controls.tsx";
import { Empty, ErrorNote, Loading } from "../../ui/states.tsx";

export function Audit(): ReactNode {
  const t = useTexts();
  const query = useInfiniteQuery(auditQuery);
  const entries = query.data?.pages.flatMap(({ data }) => data) ?? [];
  return (
    <Card title={t.admin.tabs.audit}>
      {query.error !== null && <ErrorNote error={query.error} retry={() => void query.refetch()} />}
      {query.data === undefined ? (
        query.error === null && <Loading />
      ) : entries.length === 0 ? (
        <Empty text={t.admin.audit.empty} />
      ) : (
        <div className="table-frame" tabIndex={0} role="group" aria-label={t.admin.tabs.audit}>
          <table>
            <thead>
              <tr>
                <th>{t.common.when}</th>
                <th>{t.admin.audit.action}</th>
                <th>{t.admin.audit.target}</th>
                <th>{t.admin.audit.by}</th>
                <th>{t.admin.audit.outcome}</th>
              </tr>
            </thead>
            <tbody>
              {entries.map(({ seq, time: at, action, target, by, outcome, code }) => (
                <tr key={seq}>
                  <td className="when">{time(at, t.language)}</td>
                  <td>
                    <code>{action}</code>
                  </td>
                  <td className="wrap">{target}</td>
                  <td className="wrap">
                    {by.name ?? by.id} <span className="small soft">{by.kind}</span>
                  </td>
                  <td>
                    {outcome} {code && <code className="small">{code}</code>}
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
      <Older of={query} />
    </Card>
  );
}
