/** The rows of a file as they are, with search. Only those that can be seen are in the page. */
import { useQuery } from "@tanstack/react-query";
import { useVirtualizer } from "@tanstack/react-virtual";
import { type ReactNode, useDeferredValue, useMemo, useRef, useState } from "react";
import { api, fileIdOf } from "../data/api.ts";
import { bytes, count } from "../data/format.ts";
import { useTexts } from "../texts/texts.tsx";
import { Card } from "../ui/controls.tsx";
import { Loaded } from "../ui/states.tsx";

/** More is a lot for a browser to hold, and to look at. */
const mostBytes = 32_000_000;
const isText = (filename: string): boolean => /\.(?:jsonl|ndjson|json|csv|tsv|txt|md)$/i.test(filename);

export function Rows({ datasetId, filename, size }: { datasetId: string; filename: string; size: number }): ReactNode {
  const t = useTexts();
  const [isWanted, setWanted] = useState(false);
  const query = useQuery({
    queryKey: ["rows", datasetId],
    queryFn: async ({ signal }) => (await api.downloadFile({ file_id: fileIdOf(datasetId), signal })).text(),
    enabled: isWanted,
    staleTime: Number.POSITIVE_INFINITY,
    gcTime: 0,
  });
  const isShown = isText(filename) && size <= mostBytes;
  return (
    <Card title={t.datasets.rows}>
      {!isShown ? (
        <p className="soft">{isText(filename) ? t.datasets.rowsTooLarge(bytes(mostBytes)) : t.datasets.rowsNoText}</p>
      ) : !isWanted ? (
        <div>
          <button type="button" className="button" onClick={() => setWanted(true)}>
            {t.datasets.showRows}
          </button>
        </div>
      ) : (
        <Loaded query={query}>{(text) => <Found text={text} />}</Loaded>
      )}
    </Card>
  );
}

function Found({ text }: { text: string }): ReactNode {
  const t = useTexts();
  const [search, setSearch] = useState("");
  const wanted = useDeferredValue(search).toLowerCase();
  const all = useMemo(
    () =>
      text
        .split(/\r?\n/)
        .flatMap((line, at) =>
          line.trim() === "" ? [] : [{ number: at + 1, line: readable(line), compared: readable(line).toLowerCase() }],
        ),
    [text],
  );
  const found = useMemo(() => (wanted === "" ? all : all.filter(({ compared }) => compared.includes(wanted))), [all, wanted]);
  return (
    <>
      <input
        className="input"
        type="search"
        placeholder={t.common.search}
        aria-label={t.common.search}
        value={search}
        onChange={(event) => setSearch(event.target.value)}
      />
      <p className="small soft" role="status">
        {t.datasets.rowsFound(count(found.length, t.language), count(all.length, t.language))}
      </p>
      <Lines lines={found} />
    </>
  );
}

/** JSON may write 甲 as \u7532, which nobody reads or searches for. */
function readable(line: string): string {
  if (!line.includes("\\u")) return line;
  try {
    return JSON.stringify(JSON.parse(line));
  } catch {
    return line;
  }
}

function Lines({ lines }: { lines: readonly { number: number; line: string }[] }): ReactNode {
  const t = useTexts();
  const frame = useRef<HTMLDivElement>(null);
  const rows = useVirtualizer({
    count: lines.length,
    getScrollElement: () => frame.current,
    estimateSize: () => 44,
    overscan: 10,
    getItemKey: (at) => lines[at]?.number ?? at,
  });
  return (
    <div ref={frame} className="rows" tabIndex={0} role="group" aria-label={t.datasets.rows}>
      <ol className="items" style={{ position: "relative", height: rows.getTotalSize() }}>
        {rows.getVirtualItems().map(({ index, start, key }) => {
          const row = lines[index];
          if (row === undefined) return null;
          return (
            <li
              key={key}
              ref={rows.measureElement}
              data-index={index}
              aria-setsize={lines.length}
              aria-posinset={index + 1}
              style={{ position: "absolute", insetInline: 0, top: 0, transform: `translateY(${start}px)`, padding: "10px 0" }}
            >
              <span className="when soft">{t.newRun.line(row.number)}</span>
              <code className="grow row-text">{row.line}</code>
            </li>
          );
        })}
      </ol>
    </div>
  );
}
