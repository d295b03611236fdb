import { useQuery } from "@tanstack/react-query";
import type { ReactNode } from "react";
import { limitsQuery } from "../../data/api.ts";
import { bytes, count } from "../../data/format.ts";
import { useTexts } from "../../texts/texts.tsx";
import { Card } from "../../ui/controls.tsx";
import { Loaded } from "../../ui/states.tsx";

export function Limits(): ReactNode {
  const t = useTexts();
  const query = useQuery(limitsQuery);
  const amountOf = (quota: string, value: number | null): string =>
    value !== null && quota.includes("ytes") ? bytes(value) : amount(value);
  const amount = (value: number | null): string => (value === null ? t.admin.limits.unlimited : count(value, t.language));
  return (
    <Loaded query={query} lines={6}>
      {({ data, quotas }) => (
        <>
          <Card title={t.admin.limits.quotas}>
            <div className="table-frame" tabIndex={0} role="group" aria-label={t.admin.limits.quotas}>
              <table>
                <thead>
                  <tr>
                    <th>{t.admin.limits.quota}</th>
                    <th className="num">{t.admin.limits.used}</th>
                    <th className="num">{t.admin.limits.limit}</th>
                    <th className="num">{t.admin.limits.granted}</th>
                  </tr>
                </thead>
                <tbody>
                  {quotas.map(({ quota, used, limit, granted }) => (
                    <tr key={quota}>
                      <th scope="row">
                        <code>{quota}</code>
                      </th>
                      <td className="num">{used === null ? "–" : amountOf(quota, used)}</td>
                      <td className="num">{amountOf(quota, limit)}</td>
                      <td className="num">{amountOf(quota, granted)}</td>
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
          </Card>
          <Card title={t.admin.limits.rates}>
            {data.length === 0 ? (
              <p className="soft">{t.admin.limits.emptyRates}</p>
            ) : (
              <div className="table-frame" tabIndex={0} role="group" aria-label={t.admin.limits.rates}>
                <table>
                  <thead>
                    <tr>
                      <th>{t.admin.limits.of}</th>
                      <th className="num">{t.admin.limits.requests}</th>
                      <th className="num">{t.admin.limits.tokens}</th>
                      <th className="num">{t.admin.limits.concurrency}</th>
                    </tr>
                  </thead>
                  <tbody>
                    {data.map(({ adapter, requestsPerMinute, tokensPerMinute, concurrency }) => (
                      <tr key={adapter ?? ""}>
                        <th scope="row">{adapter ?? t.admin.limits.tenant}</th>
                        <td className="num">{amount(requestsPerMinute ?? null)}</td>
                        <td className="num">{amount(tokensPerMinute ?? null)}</td>
                        <td className="num">{amount(concurrency ?? null)}</td>
                      </tr>
                    ))}
                  </tbody>
                </table>
              </div>
            )}
          </Card>
        </>
      )}
    </Loaded>
  );
}
