/** Signing in: with an API key, or with the link that `loraline up` and `loraline console` print. */
import type { SessionView } from "@loraline/contracts";
import { useQuery } from "@tanstack/react-query";
import { type FormEvent, type ReactNode, useEffect, useState } from "react";
import { api, enterSession, signInOptionsQuery } from "./data/api.ts";
import { useTexts } from "./texts/texts.tsx";
import { Card, Field } from "./ui/controls.tsx";
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

const entered = async (session: Promise<SessionView>): Promise<void> => {
  await enterSession(await session);
};

export function SignIn(): ReactNode {
  const t = useTexts();
  const [key, setKey] = useState("");
  const { data: { issuer } = {} } = useQuery(signInOptionsQuery);
  const [error, setError] = useState<unknown>();
  const [isBusy, setBusy] = useState(hasLink);
  useEffect(() => {
    document.title = `${t.signIn.title}`;
  }, [t]);
  const begin = (session: Promise<SessionView>): void => {
    setBusy(true);
    setError(undefined);
    entered(session).catch((failed: unknown) => {
      setError(failed);
      setBusy(false);
    });
  };
  useEffect(() => {
    if (givenLink === undefined || isLinkUsed) return;
    isLinkUsed = true;
    begin(api.beginSession({ body: { link: givenLink } }));
  }, []);
  const submit = (event: FormEvent): void => {
    event.preventDefault();
    begin(api.beginSession({ body: { api_key: key.trim() } }));
  };
  return (
    <main className="sign-in">
      <Card>
        <h1>{isBusy && key === "" ? t.signIn.linkTitle : t.signIn.title}</h1>
        {error !== undefined && <ErrorNote error={error} title={t.common.failedTitle} />}
        {failedCode !== undefined && error === undefined && (
          <Problem title={t.signIn.failed} code={failedCode} message={t.signIn.failedText} />
        )}
        {issuer !== null && issuer !== undefined && (
          <>
            <a className="button primary" href="/console/oidc/start">
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
          <button type="submit" className="button primary" disabled={isBusy || key.trim() === ""}>
            {t.signIn.submit}
          </button>
        </form>
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
