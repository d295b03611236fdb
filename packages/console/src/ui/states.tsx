/** What a page shows while it waits, and when something went wrong: always what, why and what to do. */
import { ApiError } from "@loraline/client";
import { useQuery } from "@tanstack/react-query";
import { Link } from "@tanstack/react-router";
import { type ReactNode, useEffect, useState } from "react";
import { sessionQuery } from "../data/api.ts";
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

/** What to do about a code, in the reader's language where its table has it. The tables are large and seldom needed. */
function useRemedy(code: string | null): { text: string; lang: string } | undefined {
  const t = useTexts();
  const [entry, setEntry] = useState<{ text: string; lang: string }>();
  useEffect(() => {
    let isCurrent = true;
    const find = async (wanted: string): Promise<void> => {
      const translated = (await t.remedies())[wanted];
      const text = translated ?? (await import("../data/codes.ts")).explainCode(wanted)?.remedy;
      if (isCurrent) setEntry(text === undefined ? undefined : { text, lang: translated === undefined ? "en" : t.language });
    };
    if (code !== null) void find(code).catch(() => undefined);
    return () => {
      isCurrent = false;
    };
  }, [code, t]);
  return entry;
}

/** A text of the server: what stands between backticks is code. */
export function Words({ text }: { text: string }): ReactNode {
  return text.split("`").map((part, at) => (at % 2 === 1 ? <code key={at}>{part}</code> : part));
}

function Remedy({ text, lang }: { text: string; lang: string }): ReactNode {
  const t = useTexts();
  return (
    <p lang={lang}>
      <strong>{t.common.whatToDo}:</strong> <Words text={text} />
    </p>
  );
}

/** What to do about codes of a list, each once. @param isTranslatedOnly - the list itself says it, in English. */
export function Remedies({ codes, isTranslatedOnly = false }: { codes: readonly string[]; isTranslatedOnly?: boolean }): ReactNode {
  return [...new Set(codes)].map((code) => <RemedyOf key={code} code={code} isTranslatedOnly={isTranslatedOnly} />);
}

function RemedyOf({ code, isTranslatedOnly }: { code: string; isTranslatedOnly: boolean }): ReactNode {
  const entry = useRemedy(code);
  if (entry === undefined || (isTranslatedOnly && entry.lang === "en")) return null;
  return (
    <div className="small">
      <Remedy {...entry} />
    </div>
  );
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
      {entry !== undefined && entry.lang !== "en" && <Remedy {...entry} />}
      <p lang="en">
        <Words text={message} />
      </p>
      {entry?.lang === "en" && <Remedy {...entry} />}
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
  // What was to be shown is not there, or not for this tenant: the server does not say which, and neither does this page.
  if (error instanceof ApiError && error.status === 404 && title === undefined) return <NotHere message={message} />;
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

function NotHere({ message }: { message: string }): ReactNode {
  const t = useTexts();
  const { data: session } = useQuery(sessionQuery);
  return (
    <div className="note warn" role="alert">
      <h2>{t.common.notHere}</h2>
      <p>{t.common.notHereText(session?.tenant ?? "")}</p>
      <p className="small soft" lang="en">
        <Words text={message} />
      </p>
      <div className="row">
        <Link to="/" className="button small">
          {t.common.toStart}
        </Link>
      </div>
    </div>
  );
}

/** Shows what a query has, also when reading it anew failed; else that it is being read, or why it is not there. */
export function Loaded<T>({
  query,
  lines,
  children,
}: {
  query: { data: T | undefined; error: Error | null; refetch(): unknown };
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
