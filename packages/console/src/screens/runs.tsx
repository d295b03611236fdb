/** All runs, newest first. */
import type { RunState } from "@loraline/contracts";
import { useInfiniteQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { useWindowVirtualizer } from "@tanstack/react-virtual";
import { memo, type ReactNode, useCallback, useRef, useState } from "react";
import { runsQuery } from "../data/api.ts";
import { time } from "../data/format.ts";
import { useTexts } from "../texts/texts.tsx";
import { Card, Older, Page, RunBadge } from "../ui/controls.tsx";
import { RunProgress } from "../ui/run-progress.tsx";
import { Empty, ErrorNote, Loading } from "../ui/states.tsx";

export function Runs(): ReactNode {
  const t = useTexts();
  const runs = useInfiniteQuery(runsQuery);
  const [chosen, setChosen] = useState<readonly string[]>([]);
  const [search, setSearch] = useState("");
  const known = runs.data?.pages.flatMap(({ data }) => data) ?? [];
  const shown = known.filter(({ spec, phase }) =>
    `${spec.adapter} ${spec.base} ${t.phases[phase]}`.toLowerCase().includes(search.toLowerCase()),
  );
  const toggle = useCallback(
    (id: string): void => setChosen((before) => (before.includes(id) ? before.filter((one) => one !== id) : [...before, id])),
    [],
  );
  return (
    <Page
      title={t.runs.title}
      end={
        <>
          {chosen.length >= 2 ? (
            <Link to="/compare" search={{ runs: chosen.join() }} className="button">
              {t.runs.compare(chosen.length)}
            </Link>
          ) : (
            known.length > 1 && <span className="small soft">{t.runs.chooseToCompare}</span>
          )}
          <Link to="/new" className="button primary">
            {t.nav.newRun}
          </Link>
        </>
      }
    >
      {runs.error !== null && <ErrorNote error={runs.error} retry={() => void runs.refetch()} />}
      <Card>
        {runs.data === undefined ? (
          runs.error === null && <Loading lines={6} />
        ) : known.length === 0 ? (
          <Empty text={t.runs.empty}>
            <Link to="/new" className="button primary">
              {t.start.begin}
            </Link>
          </Empty>
        ) : (
          <>
            <input
              className="input"
              type="search"
              placeholder={t.common.search}
              aria-label={t.common.search}
              value={search}
              onChange={(event) => setSearch(event.target.value)}
            />
            {shown.length === 0 ? <p className="soft">{t.common.noMatch}</p> : <Rows runs={shown} chosen={chosen} toggle={toggle} />}
            <Older of={runs} />
          </>
        )}
      </Card>
    </Page>
  );
}

/** Only the rows that can be seen are in the page, so that ten thousand are as quick as ten. */
function Rows({ runs, chosen, toggle }: { runs: readonly RunState[]; chosen: readonly string[]; toggle: (id: string) => void }): ReactNode {
  const list = useRef<HTMLUListElement>(null);
  const rows = useWindowVirtualizer({
    count: runs.length,
    estimateSize: () => 64,
    overscan: 10,
    scrollMargin: list.current?.offsetTop ?? 0,
    getItemKey: (at) => runs[at]?.runId ?? at,
  });
  return (
    <ul ref={list} className="items" style={{ position: "relative", height: rows.getTotalSize() }}>
      {rows.getVirtualItems().map(({ index, start, key }) => {
        const run = runs[index];
        return (
          run && (
            <Row
              key={key}
              run={run}
              index={index}
              of={runs.length}
              top={start - rows.options.scrollMargin}
              isChosen={chosen.includes(run.runId)}
              toggle={toggle}
              measure={rows.measureElement}
            />
          )
        );
      })}
    </ul>
  );
}

/** Rows that stay in view are not made anew while somebody scrolls. */
const Row = memo(function Row({
  run,
  index,
  of,
  top,
  isChosen,
  toggle,
  measure,
}: {
  run: RunState;
  index: number;
  of: number;
  top: number;
  isChosen: boolean;
  toggle: (id: string) => void;
  measure: (element: HTMLElement | null) => void;
}): ReactNode {
  const t = useTexts();
  const when = time(run.requestedAt, t.language);
  return (
    <li
      ref={measure}
      data-index={index}
      aria-setsize={of}
      aria-posinset={index + 1}
      style={{ position: "absolute", insetInline: 0, top: 0, transform: `translateY(${top}px)`, padding: "10px 0" }}
    >
      <input
        type="checkbox"
        className="choose"
        aria-label={t.runs.select(run.spec.adapter, when)}
        checked={isChosen}
        onChange={() => toggle(run.runId)}
      />
      <span className="grow">
        <Link to="/runs/$runId" params={{ runId: run.runId }}>
          {run.spec.adapter}
        </Link>{" "}
        <span className="small soft">{run.spec.base}</span>
        <RunProgress run={run} />
      </span>
      <span className="when soft">{when}</span>
      <RunBadge run={run} />
    </li>
  );
});
