import { useQuery } from "@tanstack/react-query";
import { type ReactNode, useState } from "react";
import { limitsQuery } from "../../data/api.ts";
import { bytes, count } from "../../data/format.ts";
import { useTexts } from "../../texts/texts.tsx";
import { Card, Dialog } from "../../ui/controls.tsx";
import { Loaded } from "../../ui/states.tsx";
import { LimitForm } from "./limit-form.tsx";

export function Limits(): ReactNode {
  const t = useTexts();
  const query = useQuery(limitsQuery);
  /** Of which one: null is the tenant, empty an adapter that is still to be named. */
  const [changing, setChanging] = useState<{ of: string | null }>();
  const change = (of: string | null, isFixed: boolean | null | undefined): ReactNode =>
    isFixed === true ? (
      <span className="small soft">{t.admin.limits.fixed}</span>
    ) : (
      <button type="button" className="button small" onClick={() => setChanging({ of })}>
        {t.admin.limits.change}
        <span className="visually-hidden"> {of ?? t.admin.limits.tenant}</span>
      </button>
    );
  const titleOf = (of: string | null | undefined): string =>
    of === "" ? t.admin.limits.add : of === null || of === undefined ? t.admin.limits.changeTenant : t.admin.limits.changeTitle(of);
  const amountOf = (quota: string, value: number | null): string =>
    value !== null && quota.includes("ytes") ? bytes(value) : amount(value);
  const amount = (value: number | null): string => (value === null ? t.admin.limits.unlimited : count(value, t.language));
  return (
    <Loaded query={query} lines={6}>
      {({ data, quotas }) => (
        <>
          <Card title={t.admin.limits.quotas} end={change(null, data.find(({ adapter }) => adapter === null)?.fixed)}>
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
                        {t.admin.limits.quotaNames[quota]} <code className="small soft plain">{quota}</code>
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
          <Card
            title={t.admin.limits.rates}
            end={
              <button type="button" className="button small" onClick={() => setChanging({ of: "" })}>
                {t.admin.limits.add}
              </button>
            }
          >
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
                      <td />
                    </tr>
                  </thead>
                  <tbody>
                    {data.map(({ adapter, requestsPerMinute, tokensPerMinute, concurrency, fixed }) => (
                      <tr key={adapter ?? ""}>
                        <th scope="row">{adapter ?? t.admin.limits.tenant}</th>
                        <td className="num">{amount(requestsPerMinute ?? null)}</td>
                        <td className="num">{amount(tokensPerMinute ?? null)}</td>
                        <td className="num">{amount(concurrency ?? null)}</td>
                        <td>
                          <div className="actions">{change(adapter, fixed)}</div>
                        </td>
                      </tr>
                    ))}
                  </tbody>
                </table>
              </div>
            )}
          </Card>
          <Dialog
            isWide={changing?.of === null}
            title={titleOf(changing?.of)}
            isOpen={changing !== undefined}
            onClose={() => setChanging(undefined)}
          >
            {changing !== undefined && (
              <LimitForm
                adapter={changing.of}
                entry={data.find(({ adapter }) => adapter === changing.of)}
                quotas={quotas}
                onClose={() => setChanging(undefined)}
              />
            )}
          </Dialog>
        </>
      )}
    </Loaded>
  );
}
