import { useMutation, useQuery } from "@tanstack/react-query";
import type { ReactNode } from "react";
import { api, failedQuery, queryClient } from "../../data/api.ts";
import { time } from "../../data/format.ts";
import { useTexts } from "../../texts/texts.tsx";
import { Card } from "../../ui/controls.tsx";
import { Empty, ErrorNote, Loaded } from "../../ui/states.tsx";

export function FailedMessages(): ReactNode {
  const t = useTexts();
  const query = useQuery(failedQuery);
  const redrive = useMutation({
    mutationFn: (seq: number) => api.redriveFailedMessage({ seq }),
    onSuccess: () => void queryClient.invalidateQueries({ queryKey: failedQuery.queryKey }),
  });
  return (
    <Card title={t.admin.tabs.failed}>
      {redrive.error !== null && <ErrorNote error={redrive.error} title={t.common.failedTitle} />}
      {redrive.isSuccess && <p role="status">{t.admin.failed.redriven}</p>}
      <Loaded query={query}>
        {({ data }) =>
          data.length === 0 ? (
            <Empty text={t.admin.failed.empty} />
          ) : (
            <div className="table-frame" tabIndex={0} role="group" aria-label={t.admin.tabs.failed}>
              <table>
                <thead>
                  <tr>
                    <th>{t.common.when}</th>
                    <th>{t.admin.failed.subject}</th>
                    <th>{t.admin.failed.reason}</th>
                    <th className="num">{t.admin.failed.tries}</th>
                    <td />
                  </tr>
                </thead>
                <tbody>
                  {data.map(({ seq, at, subject, durable, code, message, deliveries }) => (
                    <tr key={seq}>
                      <td className="when">{time(at, t.language)}</td>
                      <td className="wrap">
                        <code>{subject}</code>
                        <br />
                        <span className="small soft">{durable}</span>
                      </td>
                      <td className="wrap" lang="en">
                        {message} <code className="small">{code}</code>
                      </td>
                      <td className="num">{deliveries}</td>
                      <td>
                        <button type="button" className="button small" disabled={redrive.isPending} onClick={() => redrive.mutate(seq)}>
                          {t.admin.failed.redrive}
                          <span className="visually-hidden"> {seq}</span>
                        </button>
                      </td>
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
          )
        }
      </Loaded>
    </Card>
  );
}
