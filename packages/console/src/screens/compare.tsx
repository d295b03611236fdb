/** Runs side by side: curves over one another, settings that differ, results. */
import type { RunState } from "@loraline/contracts";
import { useInfiniteQuery, useQueries, useQuery } from "@tanstack/react-query";
import { Link, useNavigate, useSearch } from "@tanstack/react-router";
import { Tabs } from "radix-ui";
import { type ReactNode, useMemo, useState } from "react";
import { adapterQuery, can, metricsQuery, runQuery, runsQuery, sessionQuery } from "../data/api.ts";
import { duration, number, time } from "../data/format.ts";
import { differencesOf } from "../data/settings-of.ts";
import { useTexts } from "../texts/texts.tsx";
import { Chart, type Curve } from "../ui/chart.tsx";
import { Badge, Card, Page, RunBadge } from "../ui/controls.tsx";
import { Empty, ErrorNote, Loading } from "../ui/states.tsx";
import { Promote } from "./moves.tsx";

const colors = ["--accent", "--second", "--warn", "--bad", "--good", "--text", "--soft", "--control"];
const most = colors.length;

export function Compare(): ReactNode {
  const t = useTexts();
  const navigate = useNavigate();
  const { runs: given } = useSearch({ from: "/compare" });
  const ids = useMemo(() => (given?.split(",") ?? []).filter((id) => id !== "").slice(0, most), [given]);
  const all = useInfiniteQuery(runsQuery);
  const { data: session } = useQuery(sessionQuery);
  const found = useQueries({ queries: ids.map((id) => runQuery(id)) });
  const metrics = useQueries({ queries: ids.map((id) => metricsQuery(id)) });
  const runs = found.flatMap(({ data }) => (data === undefined ? [] : [data]));
  const failed = [...found, ...metrics].find(({ error }) => error !== null);
  const choose = (next: readonly string[]): void => void navigate({ to: "/compare", search: { runs: next.join() }, replace: true });
  const others = (all.data?.pages.flatMap(({ data }) => data) ?? []).filter(({ runId }) => !ids.includes(runId));
  const nameOf = (run: RunState): string => `${run.spec.adapter}${run.served === null ? "" : `@${run.served.version}`}`;

  const curvesOf = (loss: "train_loss" | "valid_loss"): Curve[] =>
    runs.flatMap((run, n): Curve[] => {
      const data = metrics.find(({ data: one }) => one?.run_id === run.runId)?.data?.data ?? [];
      const points = data.flatMap(({ step, [loss]: value }) => (value === null ? [] : [[step, value] as const]));
      return points.length === 0 ? [] : [{ name: `${n + 1}. ${nameOf(run)}`, color: colors[n] ?? "--accent", points }];
    });
  const curves = curvesOf("train_loss");
  const heldOut = curvesOf("valid_loss");
  const differences = runs.length < 2 ? [] : differencesOf(runs.map(({ spec }) => spec));
  const served = runs.flatMap((run) => (run.served === null ? [] : [`${run.tenant}/${run.spec.adapter}@${run.served.version}`]));

  const rows: [string, (run: RunState) => ReactNode][] = [
    [t.runs.state, (run) => <RunBadge run={run} />],
    [t.compare.heldOut, ({ trained }) => number(trained?.evaluation?.adapter_loss)],
    [t.compare.accuracy, ({ trained }) => number(trained?.evaluation?.adapter_accuracy)],
    [t.compare.steps, ({ trained, progress }) => trained?.steps ?? progress?.step ?? "–"],
    [
      t.compare.duration,
      ({ startedAt, trained }) => (startedAt !== null && trained !== null ? duration(Date.parse(trained.at) - Date.parse(startedAt)) : "–"),
    ],
    [
      t.compare.version,
      ({ served: known, spec: { adapter } }) =>
        known === null ? "–" : <PromoteHere adapter={adapter} version={known.version} mayPromote={can(session, "promote")} />,
    ],
  ];
  return (
    <Page
      title={t.compare.title}
      end={
        served.length >= 2 &&
        can(session, "infer") && (
          <Link to="/playground" search={{ models: served.slice(0, 6).join() }} className="button">
            {t.compare.askBoth}
          </Link>
        )
      }
    >
      <Card>
        {ids.length === 0 && <Empty text={t.compare.empty} />}
        {runs.length > 0 && (
          <ul className="items">
            {runs.map((run, n) => (
              <li key={run.runId}>
                <span className="swatch" style={{ background: `var(${colors[n]})` }} aria-hidden="true" />
                <span className="grow">
                  <Link to="/runs/$runId" params={{ runId: run.runId }}>
                    {n + 1}. {nameOf(run)}
                  </Link>{" "}
                  <span className="small soft">{time(run.requestedAt, t.language)}</span>
                </span>
                <button
                  type="button"
                  className="button small"
                  aria-label={t.compare.remove(nameOf(run))}
                  onClick={() => choose(ids.filter((id) => id !== run.runId))}
                >
                  ×
                </button>
              </li>
            ))}
          </ul>
        )}
        {ids.length < most && others.length > 0 && (
          <select className="input" aria-label={t.compare.add} value="" onChange={(event) => choose([...ids, event.target.value])}>
            <option value="">{t.compare.add}</option>
            {others.map((run) => (
              <option key={run.runId} value={run.runId}>
                {nameOf(run)} · {time(run.requestedAt, t.language)} · {t.phases[run.phase]}
              </option>
            ))}
          </select>
        )}
      </Card>
      {failed !== undefined && <ErrorNote error={failed.error} retry={() => void failed.refetch()} />}
      {found.some(({ isPending }) => isPending) && <Loading />}
      {curves.length > 0 && (
        <Card title={t.run.curves}>
          <Tabs.Root defaultValue="train" className="stack-s">
            <Tabs.List className="tabs" aria-label={t.run.curves}>
              <Tabs.Trigger value="train">{t.compare.curves}</Tabs.Trigger>
              {heldOut.length > 0 && <Tabs.Trigger value="held-out">{t.compare.heldOut}</Tabs.Trigger>}
            </Tabs.List>
            <Tabs.Content value="train" tabIndex={-1}>
              <Chart curves={curves} label={t.compare.curves} />
            </Tabs.Content>
            <Tabs.Content value="held-out" tabIndex={-1}>
              <Chart curves={heldOut} label={t.compare.heldOut} />
            </Tabs.Content>
          </Tabs.Root>
        </Card>
      )}
      {runs.length > 0 && (
        <Card title={t.compare.results}>
          <Side runs={runs} rows={rows.map(([name, cell]) => ({ name, cells: runs.map(cell) }))} label={t.compare.results} />
        </Card>
      )}
      {runs.length > 1 && (
        <Card title={t.compare.differences}>
          {differences.length === 0 ? (
            <p className="soft">{t.compare.same}</p>
          ) : (
            <Side
              runs={runs}
              label={t.compare.differences}
              rows={differences.map(({ name, values }) => ({ name, cells: values.map((value) => value ?? "–") }))}
            />
          )}
        </Card>
      )}
    </Page>
  );
}

/** The version, whether it is promoted, and the way to make it so. */
function PromoteHere({ adapter, version, mayPromote }: { adapter: string; version: number; mayPromote: boolean }): ReactNode {
  const t = useTexts();
  const { data: view } = useQuery(adapterQuery(adapter));
  const [asks, setAsks] = useState(false);
  const known = view?.adapter.versions.find((one) => one.version === version);
  return (
    <span className="row">
      <Link to="/adapters/$adapter" params={{ adapter }}>
        {t.start.version(version)}
      </Link>
      {view !== undefined && view.adapter.alias === version && <Badge tone="good">{t.adapters.promoted}</Badge>}
      {mayPromote &&
        view !== undefined &&
        view.adapter.alias !== version &&
        (known?.status === "desired" || known?.status === "retired") && (
          <>
            <button type="button" className="button small" onClick={() => setAsks(true)}>
              {t.adapters.promote}
              <span className="visually-hidden">
                {" "}
                {adapter} {version}
              </span>
            </button>
            <Promote view={view} version={asks ? version : undefined} onClose={() => setAsks(false)} />
          </>
        )}
    </span>
  );
}

function Side({
  runs,
  rows,
  label,
}: {
  runs: readonly RunState[];
  rows: { name: string; cells: ReactNode[] }[];
  label: string;
}): ReactNode {
  return (
    <div className="table-frame" tabIndex={0} role="group" aria-label={label}>
      <table>
        <thead>
          <tr>
            <td />
            {runs.map((run, n) => (
              <th key={run.runId}>
                {n + 1}. {run.spec.adapter}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map(({ name, cells }) => (
            <tr key={name}>
              <th scope="row">{name}</th>
              {cells.map((cell, n) => (
                <td key={runs[n]?.runId} className="wrap">
                  {cell}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
