/** Small parts that several screens use. */
import type { RunState } from "@loraline/contracts";
import { type ReactNode, useEffect, useId, useRef, useState } from "react";
import { duration } from "../data/format.ts";
import { useTexts } from "../texts/texts.tsx";

type Tone = "good" | "active" | "warn" | "bad" | "plain";

/** Reads the next page of a list, where there is one. */
export function Older({
  of: { hasNextPage, isFetchingNextPage, fetchNextPage },
}: {
  of: { hasNextPage: boolean; isFetchingNextPage: boolean; fetchNextPage(this: void): unknown };
}): ReactNode {
  const t = useTexts();
  if (!hasNextPage) return null;
  return (
    <div>
      <button type="button" className="button small" disabled={isFetchingNextPage} onClick={() => void fetchNextPage()}>
        {t.common.older}
      </button>
    </div>
  );
}

export function Badge({ tone, children }: { tone: Tone; children: ReactNode }): ReactNode {
  return <span className={`badge ${tone}`}>{children}</span>;
}

function toneOfRun({ phase, paused, queue }: Pick<RunState, "phase" | "paused" | "queue">): Tone {
  if (phase === "served") return "good";
  if (phase === "failed" || phase === "rejected") return "bad";
  if (phase === "cancelled") return "plain";
  return paused === true || queue !== null ? "warn" : "active";
}

export function RunBadge({ run }: { run: RunState }): ReactNode {
  const t = useTexts();
  const words = run.paused === true && run.finishedAt === null ? t.run.pause : t.phases[run.phase];
  return <Badge tone={toneOfRun(run)}>{words}</Badge>;
}

export function Card({
  title,
  end,
  children,
  className = "",
}: {
  title?: ReactNode;
  end?: ReactNode;
  children: ReactNode;
  className?: string;
}): ReactNode {
  const id = useId();
  return (
    <section className={`card ${className}`} {...(title === undefined ? {} : { "aria-labelledby": id })}>
      {title !== undefined && (
        <div className="spread">
          <h2 id={id}>{title}</h2>
          {end}
        </div>
      )}
      {children}
    </section>
  );
}

export function Page({ title, end, children }: { title: string; end?: ReactNode; children: ReactNode }): ReactNode {
  useEffect(() => {
    document.title = `${title} · Loraline`;
  }, [title]);
  return (
    <div className="stack">
      <div className="spread">
        <h1 tabIndex={-1}>{title}</h1>
        {end !== undefined && <div className="row">{end}</div>}
      </div>
      {children}
    </div>
  );
}

export function Fact({ name, children }: { name: string; children: ReactNode }): ReactNode {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  );
}

export function Field({
  label,
  hint,
  error,
  children,
}: {
  label: string;
  hint?: string;
  error?: string | undefined;
  children: (ids: { id: string; "aria-describedby": string | undefined; "aria-invalid": boolean | undefined }) => ReactNode;
}): ReactNode {
  const id = useId();
  const describes = hint !== undefined || error !== undefined ? `${id}-hint` : undefined;
  return (
    <div className="field">
      <label htmlFor={id}>{label}</label>
      {children({ id, "aria-describedby": describes, "aria-invalid": error === undefined ? undefined : true })}
      {describes !== undefined && (
        <p className="small" id={describes}>
          {error !== undefined && <span className="error">{error} </span>}
          <span className="soft">{hint}</span>
        </p>
      )}
    </div>
  );
}

function CopyButton({ text }: { text: string }): ReactNode {
  const t = useTexts();
  const [isCopied, setCopied] = useState(false);
  const copy = (): void => {
    void copyText(text).then((done) => {
      setCopied(done);
      setTimeout(() => setCopied(false), 2000);
    });
  };
  return (
    <button type="button" className="button small" onClick={copy}>
      <span aria-live="polite">{isCopied ? t.common.copied : t.common.copy}</span>
    </button>
  );
}

/** Browsers have a clipboard on pages from https and from this machine only. */
async function copyText(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

/** @param isNamed - what is around it says already what it is. */
export function Code({ text, label, isNamed = false }: { text: string; label: string; isNamed?: boolean }): ReactNode {
  return (
    <div className="stack-s">
      <div className="spread">
        <span className={isNamed ? "visually-hidden" : "small soft"}>{label}</span>
        <CopyButton text={text} />
      </div>
      <pre className="code" tabIndex={0} role="group" aria-label={label}>
        <code>{text}</code>
      </pre>
    </div>
  );
}

/** Asks before something is done that is not easily undone. */
export function Dialog({
  title,
  isOpen,
  isWide = false,
  onClose,
  children,
}: {
  title: string;
  isOpen: boolean;
  isWide?: boolean;
  onClose: () => void;
  children: ReactNode;
}): ReactNode {
  const ref = useRef<HTMLDialogElement>(null);
  const id = useId();
  useEffect(() => {
    if (isOpen) ref.current?.showModal();
    else ref.current?.close();
  }, [isOpen]);
  return (
    <dialog ref={ref} className={isWide ? "wide" : ""} aria-labelledby={id} onClose={onClose}>
      {isOpen && (
        <div className="stack">
          <h2 id={id}>{title}</h2>
          {children}
        </div>
      )}
    </dialog>
  );
}

/** The time since something began, as long as it lasts. @param at - milliseconds since the epoch. @param until - where it stands still. */
export function Elapsed({ at, until }: { at: number; until: number | null }): ReactNode {
  const [now, setNow] = useState(Date.now);
  useEffect(() => {
    if (until !== null) return;
    const timer = setInterval(() => setNow(Date.now()), 1000);
    return () => clearInterval(timer);
  }, [until]);
  return <span className="num">{duration((until ?? now) - at)}</span>;
}
