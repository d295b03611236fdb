/** Signing in: with an API key, or with the link that `loraline up` and `loraline console` print. */
import type { SessionView } from "@loraline/contracts";
import { useQuery } from "@tanstack/react-query";
import { type FormEvent, type ReactNode, useEffect, useState } from "react";
import { api, enterSession, queryClient, resumeSession, sessionQuery, signInOptionsQuery } from "./data/api.ts";
import { useTexts } from "./texts/texts.tsx";
import { Card, Dialog, Field } from "./ui/controls.tsx";
import { ErrorNote, Problem } from "./ui/states.tsx";

/** What follows `#link=`. It is taken out of the address at once, since it must not stay in the history. */
const givenLink = ((): string | undefined => {
  const link = /^#link=([\w~-]+)$/.exec(location.hash)?.[1];
  if (link !== undefined) history.replaceState(history.state, "", location.pathname + location.search);
  return link;
})();
/** Why signing in at the issuer failed, as a code. */
const failedCode = ((): string | undefined => {
  const code = /^#failed=(\w+)$/.exec(location.hash)?.[1];
  if (code !== undefined) history.replaceState(history.state, "", location.pathname + location.search);
  return code;
})();
let isLinkUsed = false;

export const hasLink = (): boolean => givenLink !== undefined && !isLinkUsed;

export function SignIn(): ReactNode {
  const t = useTexts();
  const [error, setError] = useState<unknown>();
  const [isLinking, setLinking] = useState(hasLink);
  useEffect(() => {
    document.title = t.signIn.title;
  }, [t]);
  useEffect(() => {
    if (givenLink === undefined || isLinkUsed) return;
    isLinkUsed = true;
    api
      .beginSession({ body: { link: givenLink } })
      .then(enterSession)
      .catch((failed: unknown) => {
        setError(failed);
        setLinking(false);
      });
  }, []);
  return (
    <main className="sign-in">
      <Card>
        <h1>{isLinking ? t.signIn.linkTitle : t.signIn.title}</h1>
        {error !== undefined && <ErrorNote error={error} title={t.common.failedTitle} />}
        {failedCode !== undefined && error === undefined && (
          <Problem title={t.signIn.failed} code={failedCode} message={t.signIn.failedText} />
        )}
        <Ways isBusy={isLinking} onEntered={enterSession} onTry={() => setError(undefined)} />
        <div className="stack-s small soft">
          <p>{t.signIn.byLink}</p>
          <pre className="code" tabIndex={0}>
            <code>loraline console</code>
          </pre>
        </div>
      </Card>
    </main>
  );
}

/** @param inNewTab - this page stays open, and sees by itself that somebody has signed in. */
function Ways({
  isBusy = false,
  inNewTab = false,
  onEntered,
  onTry,
}: {
  isBusy?: boolean;
  inNewTab?: boolean;
  onEntered: (session: SessionView) => void | Promise<void>;
  onTry?: () => void;
}): ReactNode {
  const t = useTexts();
  const [key, setKey] = useState("");
  const { data: { issuer } = {} } = useQuery(signInOptionsQuery);
  const [error, setError] = useState<unknown>();
  const [isAsking, setAsking] = useState(false);
  const submit = (event: FormEvent): void => {
    event.preventDefault();
    setAsking(true);
    setError(undefined);
    onTry?.();
    api
      .beginSession({ body: { api_key: key.trim() } })
      .then(onEntered)
      .catch(setError)
      .finally(() => setAsking(false));
  };
  return (
    <>
      {error !== undefined && <ErrorNote error={error} title={t.common.failedTitle} />}
      {issuer !== null && issuer !== undefined && (
        <>
          <a className="button primary" href="/console/oidc/start" {...(inNewTab ? { target: "_blank", rel: "noopener" } : {})}>
            {t.signIn.atIssuer(new URL(issuer).host)}
          </a>
          <p className="soft small">{t.signIn.or}</p>
        </>
      )}
      <form className="stack" onSubmit={submit}>
        <Field label={t.signIn.withKey} hint={t.signIn.keyHint}>
          {(ids) => (
            <input
              {...ids}
              className="input"
              type="password"
              autoComplete="off"
              spellCheck={false}
              value={key}
              onChange={(event) => setKey(event.target.value)}
            />
          )}
        </Field>
        <button type="submit" className="button primary" disabled={isBusy || isAsking || key.trim() === ""}>
          {t.signIn.submit}
        </button>
      </form>
    </>
  );
}

/** Over a page whose session has ended: it stays as it is, with all that was typed, until somebody signs in again. */
export function SignInAgain(): ReactNode {
  const t = useTexts();
  const { data: before } = useQuery(sessionQuery);
  const [isOpen, setOpen] = useState(true);
  // Somebody may sign in in another tab.
  useEffect(() => {
    const look = (): void => void queryClient.invalidateQueries({ queryKey: sessionQuery.queryKey });
    addEventListener("focus", look);
    return () => removeEventListener("focus", look);
  }, []);
  return (
    <>
      <div className="lost" role="alert">
        {t.signIn.ended}{" "}
        <button type="button" className="button small" onClick={() => setOpen(true)}>
          {t.signIn.again}
        </button>
      </div>
      <Dialog title={t.signIn.again} isOpen={isOpen} onClose={() => setOpen(false)}>
        <p>{t.signIn.endedText}</p>
        <Ways inNewTab onEntered={(session) => resumeSession(before ?? null, session)} />
        <div className="dialog-end">
          <button type="button" className="button" onClick={() => void enterSession(null)}>
            {t.signIn.leave}
          </button>
        </div>
      </Dialog>
    </>
  );
}
