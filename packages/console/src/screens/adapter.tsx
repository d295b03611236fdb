/** One adapter: which replica holds which version, proven or why not; the alias and where it has been; canary, promotion, rollback, download. */
import type { AdapterVersion } from "@loraline/contracts";
import type { Answer } from "@loraline/client";
import { useQuery } from "@tanstack/react-query";
import { Link, useParams } from "@tanstack/react-router";
import { type ReactNode, useState } from "react";
import { adapterQuery, api, can, sessionQuery } from "../data/api.ts";
import { bytes, duration, number, time } from "../data/format.ts";
import { saveResponse } from "../data/save-file.ts";
import { useTexts } from "../texts/texts.tsx";
import { Badge, Card, Dialog, Page } from "../ui/controls.tsx";
import { Empty, Loaded } from "../ui/states.tsx";
import { Confirm, Promote, useMove } from "./moves.tsx";

type View = Answer<"getAdapter">;

export function Adapter(): ReactNode {
  const t = useTexts();
  const { adapter } = useParams({ from: "/adapters/$adapter" });
  const query = useQuery(adapterQuery(adapter));
  return (
    <Page title={adapter}>
      <Loaded query={query} lines={8}>
        {(view) => (
          <>
            <p className="row">
              {view.adapter.alias === null ? (
                <Badge tone="plain">{t.adapters.notPromoted}</Badge>
              ) : (
                <Badge tone="good">{t.adapters.promotedIs(view.adapter.alias)}</Badge>
              )}
              <span className="soft small">
                {t.adapters.base}: {view.adapter.base} · <code className="wrap">{`${view.adapter.tenant}/${adapter}`}</code>
              </span>
            </p>
            {view.adapter.canary && <Canary view={view} />}
            <Card title={t.adapters.matrix}>
              <Matrix view={view} />
            </Card>
            <Card title={t.adapters.history}>
              <History view={view} />
            </Card>
          </>
        )}
      </Loaded>
    </Page>
  );
}

function Canary({ view: { adapter, canary: counts } }: { view: View }): ReactNode {
  const t = useTexts();
  const { data: session } = useQuery(sessionQuery);
  const [asks, setAsks] = useState(false);
  const move = useMove(adapter.adapter, () => setAsks(false));
  const { canary } = adapter;
  if (!canary) return null;
  const rows = [
    { version: canary.version, ...counts?.version },
    { version: canary.from, ...counts?.from },
  ];
  return (
    <Card
      title={t.adapters.canaryRuns(canary.version, canary.share)}
      end={
        can(session, "promote") && (
          <button type="button" className="button danger" onClick={() => setAsks(true)}>
            {t.adapters.rollback}
          </button>
        )
      }
    >
      <div className="table-frame">
        <table>
          <thead>
            <tr>
              <th>{t.adapters.version}</th>
              <th className="num">{t.adapters.requests}</th>
              <th className="num">{t.adapters.errors}</th>
              <th className="num">{t.adapters.firstByte}</th>
            </tr>
          </thead>
          <tbody>
            {rows.map(({ version, requests, errors, firstByteP95Ms }) => (
              <tr key={version}>
                <td>{t.start.version(version)}</td>
                <td className="num">{requests ?? 0}</td>
                <td className="num">{errors ?? 0}</td>
                <td className="num">{typeof firstByteP95Ms !== "number" ? "–" : duration(firstByteP95Ms)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      <Confirm
        title={t.adapters.rollbackTitle}
        text={t.adapters.endCanaryText}
        action={t.adapters.rollback}
        isOpen={asks}
        onClose={() => setAsks(false)}
        move={move}
        onYes={() => move.mutate({ kind: "rollback" })}
      />
    </Card>
  );
}

function Matrix({ view }: { view: View }): ReactNode {
  const t = useTexts();
  const { data: session } = useQuery(sessionQuery);
  const [promoting, setPromoting] = useState<number>();
  const [rolling, setRolling] = useState(false);
  const [files, setFiles] = useState<number>();
  const { adapter, replicas } = view;
  const move = useMove(adapter.adapter, () => setRolling(false));
  const mayPromote = can(session, "promote");
  const mayTake = mayPromote || can(session, "train");
  const before = previousOf(view);
  const versions = adapter.versions.filter(({ status }) => status !== "deleted").toReversed();
  if (versions.length === 0) return <Empty text={t.common.none} />;
  return (
    <>
      {replicas.length === 0 && <p className="note warn">{t.adapters.noReplicas}</p>}
      <div className="table-frame" tabIndex={0} role="group" aria-label={t.adapters.matrix}>
        <table>
          <thead>
            <tr>
              <th>{t.adapters.version}</th>
              <th className="num">{t.adapters.loss}</th>
              <th>{t.adapters.created}</th>
              {replicas.map(({ replica }) => (
                <th key={replica}>{replica.slice(0, 12)}</th>
              ))}
              <th>
                <span className="visually-hidden">{t.adapters.what}</span>
              </th>
            </tr>
          </thead>
          <tbody>
            {versions.map((version) => (
              <tr key={version.version}>
                <th scope="row" className="keep">
                  {version.version}{" "}
                  {version.version === adapter.alias ? (
                    <Badge tone="good">{t.adapters.promoted}</Badge>
                  ) : (
                    version.status !== "desired" && (
                      <Badge tone={version.status === "refused" ? "bad" : "plain"}>{t.adapters.statuses[version.status]}</Badge>
                    )
                  )}
                </th>
                <td className="num">{number(version.evaluation?.adapter_loss)}</td>
                <td className="when">
                  {can(session, "train") ? (
                    <Link to="/runs/$runId" params={{ runId: version.runId }}>
                      {time(version.createdAt, t.language)}
                    </Link>
                  ) : (
                    time(version.createdAt, t.language)
                  )}
                  <Why version={version} />
                </td>
                {replicas.map((replica) => (
                  <td key={replica.replica}>
                    <Held replica={replica} version={version} />
                  </td>
                ))}
                <td>
                  <div className="actions">
                    {mayPromote && version.version !== adapter.alias && (version.status === "desired" || version.status === "retired") && (
                      <button type="button" className="button small" onClick={() => setPromoting(version.version)}>
                        {t.adapters.promote}
                        <span className="visually-hidden"> {version.version}</span>
                      </button>
                    )}
                    {can(session, "infer") && version.status === "desired" && (
                      <Link
                        className="button small"
                        to="/playground"
                        search={{ models: `${adapter.tenant}/${adapter.adapter}@${version.version},${adapter.base}` }}
                      >
                        {t.adapters.try}
                        <span className="visually-hidden"> {version.version}</span>
                      </Link>
                    )}
                    {mayTake && version.status !== "refused" && (
                      <button type="button" className="button small" onClick={() => setFiles(version.version)}>
                        {t.adapters.export}
                        <span className="visually-hidden"> {version.version}</span>
                      </button>
                    )}
                  </div>
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {mayPromote && before !== undefined && !adapter.canary && (
        <div>
          <button
            type="button"
            className="button"
            onClick={() => {
              move.reset();
              setRolling(true);
            }}
          >
            {t.adapters.rollback}
          </button>
        </div>
      )}
      <Promote view={view} version={promoting} onClose={() => setPromoting(undefined)} />
      <Confirm
        title={t.adapters.rollbackTitle}
        text={t.adapters.rollbackText(before ?? 0)}
        action={t.adapters.rollback}
        isOpen={rolling}
        onClose={() => setRolling(false)}
        move={move}
        onYes={() => move.mutate({ kind: "rollback" })}
      />
      <Dialog title={t.adapters.filesOf(files ?? 0)} isOpen={files !== undefined} onClose={() => setFiles(undefined)}>
        {files !== undefined && <Files adapter={adapter.adapter} version={files} />}
        <div className="dialog-end">
          <button type="button" className="button" onClick={() => setFiles(undefined)}>
            {t.common.close}
          </button>
        </div>
      </Dialog>
    </>
  );
}

/** The version from which the alias came to where it is. */
const previousOf = ({ adapter: { alias, history } }: View): number | undefined =>
  alias === null
    ? undefined
    : (history.findLast(({ kind, to }) => (kind === "promoted" || kind === "rolledback") && to === alias)?.from ?? undefined);

function Why({ version: { reason, unplaced, note } }: { version: AdapterVersion }): ReactNode {
  const told = reason?.message ?? unplaced?.message ?? note;
  return told ? (
    <p className="soft wrap" lang="en" style={{ maxWidth: "36ch" }}>
      {told}
    </p>
  ) : null;
}

const tones = { proven: "good", loading: "active", draining: "plain", refused: "bad", retrying: "warn", quarantined: "warn" } as const;

function Held({ replica, version }: { replica: View["replicas"][number]; version: AdapterVersion }): ReactNode {
  const t = useTexts();
  const held = replica.adapters.find(({ engineName }) => engineName === version.engineName);
  if (held === undefined) return <span className="soft small">{t.adapters.states.absent}</span>;
  return (
    <>
      <Badge tone={tones[held.state]}>{t.adapters.states[held.state]}</Badge>
      {held.error !== null && (
        <p className="small soft wrap" lang="en">
          {held.error.message}
        </p>
      )}
    </>
  );
}

function Files({ adapter, version }: { adapter: string; version: number }): ReactNode {
  const query = useQuery({
    queryKey: ["files", adapter, version],
    queryFn: ({ signal }) => api.listVersionFiles({ adapter, version, signal }),
  });
  return (
    <Loaded query={query}>
      {({ data }) => (
        <ul className="items">
          {data.map(({ name, bytes: size }) => (
            <li key={name}>
              <span className="grow">
                <code>{name}</code>
              </span>
              <span className="small soft num">{bytes(size)}</span>
              <button
                type="button"
                className="button small"
                onClick={() => void api.downloadVersionFile({ adapter, version, file: name }).then((answer) => saveResponse(answer, name))}
              >
                <DownloadWord name={name} />
              </button>
            </li>
          ))}
        </ul>
      )}
    </Loaded>
  );
}

function DownloadWord({ name }: { name: string }): ReactNode {
  const t = useTexts();
  return (
    <>
      {t.adapters.export}
      <span className="visually-hidden"> {name}</span>
    </>
  );
}

function History({ view: { adapter } }: { view: View }): ReactNode {
  const t = useTexts();
  const moves = adapter.history.toReversed().slice(0, 50);
  if (moves.length === 0) return <p className="soft">{t.adapters.noHistory}</p>;
  return (
    <div className="table-frame" tabIndex={0} role="group" aria-label={t.adapters.history}>
      <table>
        <thead>
          <tr>
            <th>{t.common.when}</th>
            <th>{t.adapters.version}</th>
            <th>{t.adapters.what}</th>
            <th>{t.adapters.by}</th>
            <th>{t.adapters.why}</th>
          </tr>
        </thead>
        <tbody>
          {moves.map(({ at, to, kind, share, by, reason }, n) => (
            <tr key={`${at}${n}`}>
              <td className="when">{time(at, t.language)}</td>
              <td>{to}</td>
              <td>
                {t.adapters.kinds[kind]}
                {typeof share === "number" && ` (${share} %)`}
              </td>
              <td className="wrap">{by ?? "–"}</td>
              <td className="small wrap" lang="en">
                {reason}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
