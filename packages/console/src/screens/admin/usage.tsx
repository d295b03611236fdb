import { useQuery } from "@tanstack/react-query";
import type { ReactNode } from "react";
import { usageQuery } from "../../data/api.ts";
import { count } from "../../data/format.ts";
import { useTexts } from "../../texts/texts.tsx";
import { Card } from "../../ui/controls.tsx";
import { Empty, Loaded } from "../../ui/states.tsx";

interface Sum {
  requests: number;
  failed: number;
  promptTokens: number;
  completionTokens: number;
}
const nothing: Sum = { requests: 0, failed: 0, promptTokens: 0, completionTokens: 0 };
const sumOf = (rows: readonly Sum[]): Sum =>
  rows.reduce(
    (sum, row) => ({
      requests: sum.requests + row.requests,
      failed: sum.failed + row.failed,
      promptTokens: sum.promptTokens + row.promptTokens,
      completionTokens: sum.completionTokens + row.completionTokens,
    }),
    nothing,
  );

export function Usage(): ReactNode {
  const t = useTexts();
  const query = useQuery(usageQuery);
  return (
    <Loaded query={query} lines={6}>
      {({ data }) => {
        if (data.length === 0)
          return (
            <Card title={t.admin.tabs.usage}>
              <Empty text={t.admin.usage.empty} />
            </Card>
          );
        const models = [...Map.groupBy(data, ({ model }) => model)].map(([name, rows]) => ({ name, ...sumOf(rows) }));
        const days = [...Map.groupBy(data, ({ day }) => day)].map(([name, rows]) => ({ name, ...sumOf(rows) })).toReversed();
        return (
          <>
            <Card title={t.admin.usage.total}>
              <Rows head={t.admin.usage.model} rows={models.toSorted((a, b) => b.requests - a.requests)} />
            </Card>
            <Card title={t.admin.usage.byDay}>
              <Rows head={t.admin.usage.day} rows={days} />
            </Card>
          </>
        );
      }}
    </Loaded>
  );
}

function Rows({ head, rows }: { head: string; rows: readonly (Sum & { name: string })[] }): ReactNode {
  const t = useTexts();
  return (
    <div className="table-frame" tabIndex={0} role="group" aria-label={head}>
      <table>
        <thead>
          <tr>
            <th>{head}</th>
            <th className="num">{t.admin.usage.requests}</th>
            <th className="num">{t.admin.usage.failed}</th>
            <th className="num">{t.admin.usage.prompt}</th>
            <th className="num">{t.admin.usage.completion}</th>
          </tr>
        </thead>
        <tbody>
          {rows.map(({ name, requests, failed, promptTokens, completionTokens }) => (
            <tr key={name}>
              <th scope="row" className="wrap">
                {name}
              </th>
              {[requests, failed, promptTokens, completionTokens].map((value, n) => (
                <td className="num" key={n}>
                  {count(value, t.language)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
