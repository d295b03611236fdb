/** Engines, their replicas, what would make them serve better, and the runs that wait. */
import type { RunState } from "@loraline/contracts";
import { useInfiniteQuery, useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import type { ReactNode } from "react";
import { can, enginesQuery, isOver, runsQuery, sessionQuery } from "../data/api.ts";
import { duration, time } from "../data/format.ts";
import { useTexts } from "../texts/texts.tsx";
import { Badge, Card, Fact, Page, RunBadge } from "../ui/controls.tsx";
import { Empty, Loaded, Loading, Words } from "../ui/states.tsx";

export function Engines(): ReactNode {
  const t = useTexts();
  const { data: session } = useQuery(sessionQuery);
  const query = useQuery(enginesQuery);
  return (
    <Page title={t.engines.title}>
      <Loaded query={query} lines={6}>
        {({ data }) =>
          data.length === 0 ? (
            <Card>
              <Empty text={`${t.engines.empty} ${t.engines.emptyText}`} />
            </Card>
          ) : (
            data.map(({ engine, base, replicas, maxLoraRank, maxLoras, maxCpuLoras, maxModelLen, asked, advice }) => (
              <Card key={engine} title={base} end={<span className="small soft">{engine}</span>}>
                <dl className="facts">
                  <Fact name={t.engines.rank}>{maxLoraRank}</Fact>
                  <Fact name={t.engines.context}>{maxModelLen.toLocaleString(t.language)}</Fact>
                </dl>
                <p className="soft">
                  {t.engines.slots(maxLoras, maxCpuLoras)} · {t.engines.asked(asked.adapters, duration(asked.windowMs))}
                </p>
                <div className="table-frame" tabIndex={0} role="group" aria-label={t.engines.replicas}>
                  <table>
                    <thead>
                      <tr>
                        <th>{t.engines.replica}</th>
                        <th>{t.engines.state}</th>
                        <th className="num">{t.engines.wanted}</th>
                        <th className="num">{t.engines.proven}</th>
                        <th className="num">{t.engines.trouble}</th>
                      </tr>
                    </thead>
                    <tbody>
                      {replicas.map(({ replica, ready, problem, counts }) => (
                        <tr key={replica}>
                          <td>
                            <code>{replica.slice(0, 12)}</code>
                          </td>
                          <td>
                            <Badge tone={ready ? "good" : "warn"}>{ready ? t.engines.ready : t.engines.notReady}</Badge>
                            {problem && (
                              <p className="small wrap" lang="en">
                                {problem.message}
                              </p>
                            )}
                          </td>
                          <td className="num">{counts?.wanted ?? "–"}</td>
                          <td className="num">{counts?.proven ?? "–"}</td>
                          <td className="num">{counts ? counts.retrying + counts.quarantined + counts.refused : "–"}</td>
                        </tr>
                      ))}
                    </tbody>
                  </table>
                </div>
                <div className="stack-s">
                  <h3>{t.engines.advice}</h3>
                  {advice.length === 0 ? (
                    <p className="soft">{t.engines.noAdvice}</p>
                  ) : (
                    <ul className="stack-s" lang="en">
                      {advice.map(({ code, level, message }) => (
                        <li key={code} className={`note ${level === "warn" ? "warn" : ""}`}>
                          <Words text={message} />
                        </li>
                      ))}
                    </ul>
                  )}
                </div>
              </Card>
            ))
          )
        }
      </Loaded>
      {can(session, "train") && <Queue />}
    </Page>
  );
}

const gpusOf = ({ spec: { gpus = 1, nodes = 1 } }: RunState): number => gpus * nodes;

function Queue(): ReactNode {
  const t = useTexts();
  const runs = useInfiniteQuery(runsQuery);
  const open = (runs.data?.pages.flatMap(({ data }) => data) ?? []).filter((run) => !isOver(run) && run.trained === null);
  const training = open.filter(({ phase }) => phase === "running");
  const waiting = open
    .filter(({ phase }) => phase !== "running")
    .toSorted((a, b) => (b.spec.priority ?? 0) - (a.spec.priority ?? 0) || (a.requestedAt < b.requestedAt ? -1 : 1));
  return (
    <Card title={t.engines.queue}>
      {runs.data === undefined ? (
        <Loading />
      ) : (
        <>
          <p className="soft">
            {t.engines.training(
              training.length,
              training.reduce((sum, run) => sum + gpusOf(run), 0),
            )}{" "}
            {waiting.length === 0 ? t.engines.queueEmpty : t.engines.queueOrder}
          </p>
          {waiting.length > 0 && (
            <div className="table-frame" tabIndex={0} role="group" aria-label={t.engines.queue}>
              <table>
                <thead>
                  <tr>
                    <th className="num">{t.engines.place}</th>
                    <th>{t.compare.run}</th>
                    <th>{t.engines.state}</th>
                    <th className="num">{t.engines.gpus}</th>
                    <th className="num">{t.engines.priority}</th>
                    <th>{t.engines.since}</th>
                  </tr>
                </thead>
                <tbody>
                  {waiting.map((run, at) => (
                    <tr key={run.runId}>
                      <td className="num">{at + 1}</td>
                      <td>
                        <Link to="/runs/$runId" params={{ runId: run.runId }}>
                          {run.spec.adapter}
                        </Link>
                      </td>
                      <td className="wrap">
                        <RunBadge run={run} />
                        {run.queue !== null && (
                          <p className="small soft" lang="en">
                            <Words text={run.queue.message} />
                          </p>
                        )}
                      </td>
                      <td className="num">{gpusOf(run)}</td>
                      <td className="num">{run.spec.priority ?? 0}</td>
                      <td className="when">{time(run.requestedAt, t.language)}</td>
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
          )}
        </>
      )}
    </Card>
  );
}
