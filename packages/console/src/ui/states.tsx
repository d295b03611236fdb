/** What a page shows while it waits, and when something went wrong: always what, why and what to do. */
import { ApiError } from "@loraline/client";
import type { CodeEntry } from "@loraline/contracts";
import type { UseQueryResult } from "@tanstack/react-query";
import { type ReactNode, useEffect, useState } from "react";
import { useTexts } from "../texts/texts.tsx";

export function Loading({ lines = 3 }: { lines?: number }): ReactNode {
  const t = useTexts();
  return (
    <div className="stack-s" role="status">
      <span className="visually-hidden">{t.common.loading}</span>
      {Array.from({ length: lines }, (_, n) => (
        <div className="skeleton" key={n} />
      ))}
    </div>
  );
}

/** The table of codes is large and seldom needed. */
function useRemedy(code: string | null): CodeEntry | undefined {
  const [entry, setEntry] = useState<CodeEntry>();
  useEffect(() => {
    let isCurrent = true;
    if (code !== null)
      void import("../data/codes.ts").then(
        ({ explainCode }) => isCurrent && setEntry(explainCode(code)),
        () => undefined,
      );
    return () => {
      isCurrent = false;
    };
  }, [code]);
  return entry;
}

/** A text of the server: what stands between backticks is code. */
export function Words({ text }: { text: string }): ReactNode {
  return text.split("`").map((part, at) => (at % 2 === 1 ? <code key={at}>{part}</code> : part));
}

/** A problem with its remedy from the table of codes. */
export function Problem({
  title,
  code,
  message,
  tone = "bad",
  children,
}: {
  title: string;
  code: string | null;
  message: string;
  tone?: "bad" | "warn";
  children?: ReactNode;
}): ReactNode {
  const t = useTexts();
  const entry = useRemedy(code);
  return (
    <div className={`note ${tone}`} role={tone === "bad" ? "alert" : undefined}>
      <h2>{title}</h2>
      <p lang="en">
        <Words text={message} />
      </p>
      {entry !== undefined && (
        <p lang="en">
          <strong>{t.common.whatToDo}:</strong> <Words text={entry.remedy} />
        </p>
      )}
      {code !== null && (
        <p className="small soft">
          {t.common.code}: <code>{code}</code>
        </p>
      )}
      {children !== undefined && <div className="row">{children}</div>}
    </div>
  );
}

export function ErrorNote({ error, title, retry }: { error: unknown; title?: string; retry?: () => void }): ReactNode {
  const t = useTexts();
  const code = error instanceof ApiError ? error.code : null;
  const message = error instanceof Error ? error.message : String(error);
  return (
    <Problem title={title ?? t.common.errorTitle} code={code} message={message}>
      {retry && (
        <button type="button" className="button small" onClick={retry}>
          {t.common.retry}
        </button>
      )}
    </Problem>
  );
}

/** Shows what a query has, also when reading it anew failed; else that it is being read, or why it is not there. */
export function Loaded<T>({
  query,
  lines,
  children,
}: {
  query: UseQueryResult<T>;
  lines?: number;
  children: (data: T) => ReactNode;
}): ReactNode {
  if (query.data !== undefined)
    return (
      <>
        {query.error !== null && <ErrorNote error={query.error} retry={() => void query.refetch()} />}
        {children(query.data)}
      </>
    );
  if (query.error !== null) return <ErrorNote error={query.error} retry={() => void query.refetch()} />;
  return <Loading {...(lines === undefined ? {} : { lines })} />;
}

export function Empty({ text, children }: { text: string; children?: ReactNode }): ReactNode {
  return (
    <div className="empty">
      <p>{text}</p>
      {children}
    </div>
  );
}
