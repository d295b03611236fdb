/** What runs, what waits and for what, what answers, and what needs a person. */
import { type AdapterState, type RunState } from "@loraline/contracts";
import { useInfiniteQuery, useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import type { ReactNode } from "react";
import { adaptersQuery, can, enginesQuery, isOver, runsQuery, sessionQuery } from "../data/api.ts";
import { time } from "../data/format.ts";
import { useTexts } from "../texts/texts.tsx";
import { Badge, Card, Page, RunBadge } from "../ui/controls.tsx";
import { RunProgress } from "../ui/run-progress.tsx";
import { Empty, ErrorNote, Loading } from "../ui/states.tsx";

/** A failure counts as news for so long. */
const newsMs = 3 * 24 * 60 * 60 * 1000;

/** A version that is proven, newer than the promoted one, and waits for somebody to promote it. */
const waiting = ({ versions, alias, canary }: AdapterState): number | undefined => {
  const newest = versions.findLast(({ status, servedAt, promote }) => status === "desired" && servedAt !== null && promote === "manual");
  return newest !== undefined && newest.version > (alias ?? 0) && !canary ? newest.version : undefined;
};

export function Start(): ReactNode {
  const t = useTexts();
  const { data: session } = useQuery(sessionQuery);
  const mayTrain = can(session, "train");
  const maySee = mayTrain || can(session, "infer") || can(session, "promote");
  const runs = useInfiniteQuery({ ...runsQuery, enabled: mayTrain });
  const adapters = useQuery({ ...adaptersQuery, enabled: maySee });
  const engines = useQuery({ ...enginesQuery, enabled: maySee });

  const known = runs.data?.pages.flatMap(({ data }) => data) ?? [];
  const active = known.filter((run) => !isOver(run));
  const over = known.filter(isOver);
  const seenAdapters = adapters.data?.data.map(({ adapter }) => adapter) ?? [];
  const isNew = runs.data !== undefined && adapters.data !== undefined && known.length === 0 && seenAdapters.length === 0;

  const failed = latestOfEach(known).filter(
    ({ phase, updatedAt }) => (phase === "failed" || phase === "rejected") && Date.now() - Date.parse(updatedAt) < newsMs,
  );
  const decisions: { key: string; text: string; link: ReactNode }[] = [
    ...seenAdapters.flatMap((adapter) => {
      const version = waiting(adapter);
      if (version === undefined) return [];
      const link = (
        <Link to="/adapters/$adapter" params={{ adapter: adapter.adapter }}>
          {t.start.look}
        </Link>
      );
      return [{ key: `w-${adapter.adapter}`, text: t.start.waitsManual(adapter.adapter, version), link }];
    }),
    ...failed.map((run) => ({
      key: run.runId,
      text: (run.phase === "failed" ? t.start.failedRun : t.start.rejectedRun)(run.spec.adapter),
      link: <RunLink run={run} />,
    })),
    ...active
      .filter(({ paused }) => paused === true)
      .map((run) => ({ key: run.runId, text: t.start.pausedRun(run.spec.adapter), link: <RunLink run={run} /> })),
    ...(engines.data?.data ?? []).flatMap(({ engine, replicas }) =>
      replicas.some(({ problem }) => problem)
        ? [{ key: engine, text: t.start.engineProblem(engine), link: <Link to="/engines">{t.start.look}</Link> }]
        : [],
    ),
  ];

  return (
    <Page title={t.start.title}>
      {isNew && (
        <Card title={t.start.welcome}>
          <p>{t.start.welcomeText}</p>
          <div>
            <Link to="/new" className="button primary">
              {t.start.begin}
            </Link>
          </div>
        </Card>
      )}
      {runs.error !== null && <ErrorNote error={runs.error} retry={() => void runs.refetch()} />}
      {adapters.error !== null && <ErrorNote error={adapters.error} retry={() => void adapters.refetch()} />}
      {!isNew && (
        <>
          <Card title={t.start.needsYou}>
            {decisions.length === 0 ? (
              <p className="soft">{t.start.nothingNeedsYou}</p>
            ) : (
              <ul className="items">
                {decisions.map(({ key, text, link }) => (
                  <li key={key}>
                    <span className="grow">{text}</span>
                    {link}
                  </li>
                ))}
              </ul>
            )}
          </Card>
          <div className="columns">
            {mayTrain && (
              <Card
                title={t.start.running}
                end={
                  <Link to="/new" className="button small">
                    {t.nav.newRun}
                  </Link>
                }
              >
                {runs.data === undefined ? (
                  runs.error === null && <Loading />
                ) : active.length === 0 ? (
                  <p className="soft">{t.start.nothingRuns}</p>
                ) : (
                  <ul className="items">
                    {active.slice(0, 12).map((run) => (
                      <li key={run.runId}>
                        <span className="grow">
                          <RunLink run={run} name />
                          <RunProgress run={run} />
                        </span>
                        <RunBadge run={run} />
                      </li>
                    ))}
                  </ul>
                )}
              </Card>
            )}
            <Card title={t.start.served}>
              {adapters.data === undefined ? (
                adapters.error === null && maySee && <Loading />
              ) : seenAdapters.every(({ alias }) => alias === null) ? (
                <Empty text={t.start.nothingServed} />
              ) : (
                <ul className="items">
                  {seenAdapters
                    .filter(({ alias }) => alias !== null)
                    .slice(0, 12)
                    .map(({ adapter, alias, base }) => (
                      <li key={adapter}>
                        <span className="grow">
                          <Link to="/adapters/$adapter" params={{ adapter }}>
                            {adapter}
                          </Link>
                          <br />
                          <span className="small soft">{base}</span>
                        </span>
                        <Badge tone="good">{t.start.version(alias ?? 0)}</Badge>
                      </li>
                    ))}
                </ul>
              )}
            </Card>
          </div>
          {mayTrain && over.length > 0 && (
            <Card title={t.start.recent} end={<Link to="/runs">{t.common.more}</Link>}>
              <ul className="items">
                {over.slice(0, 5).map((run) => (
                  <li key={run.runId}>
                    <span className="grow">
                      <RunLink run={run} name />
                    </span>
                    <span className="when soft">{time(run.finishedAt ?? run.updatedAt, t.language)}</span>
                    <RunBadge run={run} />
                  </li>
                ))}
              </ul>
            </Card>
          )}
        </>
      )}
    </Page>
  );
}

function RunLink({ run, name = false }: { run: RunState; name?: boolean }): ReactNode {
  const t = useTexts();
  return (
    <Link to="/runs/$runId" params={{ runId: run.runId }}>
      {name ? run.spec.adapter : t.start.look}
    </Link>
  );
}

/** The newest run of each adapter: what failed and was done again is no news. */
function latestOfEach(runs: readonly RunState[]): RunState[] {
  const seen = new Set<string>();
  return runs.filter(({ spec: { adapter } }) => !seen.has(adapter) && seen.add(adapter));
}
