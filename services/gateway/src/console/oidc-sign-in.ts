/** `/console/oidc/…`: signing in at the OIDC issuer, by the code flow with PKCE. */
import { PermanentError, RetryLaterError } from "@loraline/runtime";
import type { FastifyInstance, FastifyRequest } from "fastify";
import {
  AuthorizationResponseError,
  authorizationCodeGrant,
  buildAuthorizationUrl,
  calculatePKCECodeChallenge,
  randomNonce,
  randomPKCECodeVerifier,
  randomState,
  ResponseBodyError,
} from "openid-client";
import { z } from "zod";
import type { Issuer, IssuerOptions } from "./issuer.ts";
import { cookieOf, isSecure, setSessionCookie } from "./session-cookie.ts";
import type { Sessions } from "./sessions.ts";

export interface OidcSignInOptions extends IssuerOptions {
  /** What is asked for, beside `openid`, with spaces between. */
  scopes?: string | undefined;
  /** More parameters of the question, such as `resource=…` or `audience=…`: what makes the issuer give a token for this API. */
  parameters?: string | undefined;
  /** Origin under which people open the console. Default: that of the request. */
  origin?: string | undefined;
}

const started = z.object({ state: z.string(), nonce: z.string(), verifier: z.string() });
/** How long somebody may take to sign in at the issuer. */
const patienceS = 10 * 60;
const paths = { start: "/console/oidc/start", callback: "/console/oidc/callback" };

/** What one sign-in remembers meanwhile. Over https `__Host-` keeps other hosts of the domain from setting it. */
const stateCookieOf = (request: FastifyRequest): string => (isSecure(request) ? "__Host-loraline-oidc" : "loraline-oidc");

/** @param deps.seal - keeps what the browser brings back from being read or changed there. */
export function oidcSignIn({
  options,
  issuer,
  sessions,
  seal,
}: {
  options: OidcSignInOptions | undefined;
  issuer: Issuer | undefined;
  sessions: Sessions;
  seal: { close(text: string): string; open(sealed: string): string | undefined };
}): (app: FastifyInstance) => void {
  const configured = (): { settings: OidcSignInOptions; issuer: Issuer } => {
    if (options !== undefined && issuer !== undefined) return { settings: options, issuer };
    throw new PermanentError("sign_in_not_offered", "This server has no issuer at which people sign in to the console.", { status: 404 });
  };
  const originOf = (request: FastifyRequest, { origin }: OidcSignInOptions): string =>
    origin ?? `${isSecure(request) ? "https" : "http"}://${request.headers.host ?? ""}`;
  // `Lax`, since the issuer sends the browser back from another site.
  const cookie = (request: FastifyRequest, value: string, seconds: number): string =>
    `${stateCookieOf(request)}=${value}; Path=/; HttpOnly; SameSite=Lax; Max-Age=${seconds}${isSecure(request) ? "; Secure" : ""}`;

  return (app) => {
    app.get(paths.start, async (request, reply) => {
      const { settings, issuer } = configured();
      const config = await issuer.configuration();
      const flow = { state: randomState(), nonce: randomNonce(), verifier: randomPKCECodeVerifier() };
      const url = buildAuthorizationUrl(config, {
        ...Object.fromEntries(new URLSearchParams(settings.parameters ?? "")),
        redirect_uri: originOf(request, settings) + paths.callback,
        scope: ["openid", ...(settings.scopes?.split(" ") ?? [])].join(" ").trim(),
        code_challenge: await calculatePKCECodeChallenge(flow.verifier),
        code_challenge_method: "S256",
        state: flow.state,
        nonce: flow.nonce,
      });
      void reply.header("set-cookie", cookie(request, seal.close(JSON.stringify(flow)), patienceS)).header("cache-control", "no-store");
      return reply.redirect(url.href, 303);
    });

    app.get(paths.callback, async (request, reply) => {
      void reply.header("cache-control", "no-store");
      // It says what went wrong on the console's own page, as a code: what the issuer or the address say is not repeated there.
      const failed = (code: string) => reply.header("set-cookie", cookie(request, "", 0)).redirect(`/console/#failed=${code}`, 303);
      try {
        const { settings, issuer } = configured();
        const sealed = cookieOf(request, stateCookieOf(request));
        const text = sealed === undefined ? undefined : seal.open(sealed);
        const flow = text === undefined ? undefined : started.parse(JSON.parse(text));
        if (flow === undefined) return await failed("sign_in_expired");
        const config = await issuer.configuration();
        const tokens = await authorizationCodeGrant(config, new URL(request.url, originOf(request, settings)), {
          pkceCodeVerifier: flow.verifier,
          expectedState: flow.state,
          expectedNonce: flow.nonce,
          idTokenExpected: true,
        });
        const { cookie: session, expiresAt } = await sessions.beginWithTokens({
          access: tokens.access_token,
          refresh: tokens.refresh_token,
        });
        const seconds = Math.ceil((Date.parse(expiresAt) - Date.now()) / 1000);
        return await reply
          .header("set-cookie", [setSessionCookie(request, session, seconds), cookie(request, "", 0)])
          .redirect("/console/", 303);
      } catch (error) {
        app.log.warn({ err: error }, "signing in at the issuer failed");
        if (error instanceof PermanentError || error instanceof RetryLaterError) return failed(error.code);
        if (error instanceof AuthorizationResponseError || error instanceof ResponseBodyError) return failed("sign_in_refused");
        return failed("sign_in_expired");
      }
    });
  };
}
