/** The frame around every page: navigation, who is signed in, and whether what is shown is of now. */
import type { Scope } from "@loraline/contracts";
import { useQuery } from "@tanstack/react-query";
import { Link, Outlet, useRouterState } from "@tanstack/react-router";
import { type ReactNode, useEffect, useRef, useState } from "react";
import { api, can, enterSession, queryClient, sessionEndedQuery, sessionQuery } from "./data/api.ts";
import { soon, time } from "./data/format.ts";
import { followServer, type LiveState } from "./data/live.ts";
import { hasLink, SignIn, SignInAgain } from "./sign-in.tsx";
import { languageNames, type Theme, themes, useSettings } from "./texts/texts.tsx";
import { Badge } from "./ui/controls.tsx";
import { ErrorNote, Loading } from "./ui/states.tsx";

const places = [
  { to: "/", name: "start", scopes: ["infer", "train", "promote", "admin"] },
  { to: "/new", name: "newRun", scopes: ["train"] },
  { to: "/runs", name: "runs", scopes: ["train"] },
  { to: "/compare", name: "compare", scopes: ["train"] },
  { to: "/playground", name: "playground", scopes: ["infer"] },
  { to: "/adapters", name: "adapters", scopes: ["infer", "train", "promote"] },
  { to: "/datasets", name: "datasets", scopes: ["train"] },
  { to: "/engines", name: "engines", scopes: ["infer", "train", "promote"] },
  { to: "/admin", name: "admin", scopes: ["admin"] },
] as const satisfies { to: string; name: string; scopes: readonly Scope[] }[];

export function Shell(): ReactNode {
  const session = useQuery(sessionQuery);
  if (hasLink()) return <SignIn />;
  if (session.data === null) return <SignIn />;
  if (session.data === undefined)
    return (
      <main className="sign-in">
        {session.error === null ? <Loading /> : <ErrorNote error={session.error} retry={() => void session.refetch()} />}
      </main>
    );
  return <Frame />;
}

function Frame(): ReactNode {
  const { texts: t } = useSettings();
  const { data: session } = useQuery(sessionQuery);
  const { data: hasEnded } = useQuery(sessionEndedQuery);
  const [live, setLive] = useState<LiveState>({ status: "connecting", since: 0 });
  const [isOpen, setOpen] = useState(false);
  const path = useRouterState({ select: ({ location }) => location.pathname });
  const main = useRef<HTMLElement>(null);
  const follows = can(session, "infer") || can(session, "train") || can(session, "promote");
  useEffect(() => (follows ? followServer(queryClient, setLive) : undefined), [follows]);
  // Who does not see the page hears that it is another one.
  const before = useRef(path);
  useEffect(() => {
    setOpen(false);
    if (before.current !== path) main.current?.focus();
    before.current = path;
  }, [path]);
  return (
    <div className="frame" data-live={live.status}>
      <a className="skip" href="#main">
        {t.common.skip}
      </a>
      {hasEnded && <SignInAgain />}
      {live.status === "lost" && !hasEnded && (
        <p className="lost" role="alert">
          {t.shell.lost(time(live.since, t.language))}
        </p>
      )}
      <header className="side" data-open={isOpen}>
        <Link to="/" className="brand">
          <img src="/console/icon.svg" alt="" />
          Loraline
        </Link>
        <button type="button" className="button small menu-button" aria-expanded={isOpen} onClick={() => setOpen(!isOpen)}>
          {t.shell.menu}
        </button>
        <nav className="nav" aria-label={t.shell.navigation}>
          {places
            .filter(({ scopes }) => scopes.some((scope) => can(session, scope)))
            .map(({ to, name }) => (
              <Link key={to} to={to} activeOptions={{ exact: to === "/", includeSearch: false }}>
                {t.nav[name]}
              </Link>
            ))}
        </nav>
        <div className="side-end">
          {live.status !== "lost" && follows && (
            <p>
              <Badge tone={live.status === "live" ? "good" : "plain"}>{live.status === "live" ? t.shell.live : t.shell.connecting}</Badge>
            </p>
          )}
          <p className="who">{session && t.shell.signedInAs(session.name, session.tenant)}</p>
          {session?.expires_at && <p className="who">{t.shell.until(soon(session.expires_at, t.language))}</p>}
          <Appearance />
          <SignOut />
        </div>
      </header>
      <main className="main" id="main" ref={main} tabIndex={-1}>
        <div className="fresh">
          <Outlet />
        </div>
      </main>
    </div>
  );
}

function Appearance(): ReactNode {
  const { texts: t, setLanguage, theme, setTheme } = useSettings();
  return (
    <div className="stack-s">
      <select className="input" aria-label={t.shell.language} value={t.language} onChange={(event) => setLanguage(event.target.value)}>
        {languageNames.map(({ code, name }) => (
          <option key={code} value={code}>
            {name}
          </option>
        ))}
      </select>
      <select className="input" aria-label={t.shell.theme} value={theme} onChange={(event) => setTheme(event.target.value as Theme)}>
        {themes.map((one) => (
          <option key={one} value={one}>
            {t.shell.themes[one]}
          </option>
        ))}
      </select>
    </div>
  );
}

function SignOut(): ReactNode {
  const { texts: t } = useSettings();
  const leave = async (): Promise<void> => {
    await api.endSession().catch(() => undefined);
    await enterSession(null);
  };
  return (
    <button type="button" className="button small" onClick={() => void leave()}>
      {t.shell.signOut}
    </button>
  );
}
