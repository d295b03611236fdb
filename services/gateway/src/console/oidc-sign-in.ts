/** `/console/oidc/…`: signing in at the OIDC issuer, by the code flow with PKCE. */
import { PermanentError, RetryLaterError } from "@loraline/runtime";
import type { FastifyInstance, FastifyRequest } from "fastify";
import {
  allowInsecureRequests,
  AuthorizationResponseError,
  authorizationCodeGrant,
  buildAuthorizationUrl,
  calculatePKCECodeChallenge,
  ClientSecretPost,
  type Configuration,
  discovery,
  None,
  randomNonce,
  randomPKCECodeVerifier,
  randomState,
  ResponseBodyError,
} from "openid-client";
import { z } from "zod";
import { cookieOf, isSecure, setSessionCookie } from "./session-cookie.ts";
import type { Sessions } from "./sessions.ts";

export interface OidcSignInOptions {
  /** URL, exactly as in the tokens' `iss`. */
  issuer: string;
  /** As the issuer knows the console. */
  clientId: string;
  /** Absent: a public client, which PKCE alone protects. */
  clientSecret?: string | undefined;
  /** What is asked for, beside `openid`, with spaces between. */
  scopes?: string | undefined;
  /** More parameters of the question, such as `resource=…` or `audience=…`: what makes the issuer give a token for this API. */
  parameters?: string | undefined;
  /** Origin under which people open the console. Default: that of the request. */
  origin?: string | undefined;
}

const started = z.object({ state: z.string(), nonce: z.string(), verifier: z.string() });
const stateCookie = "loraline-oidc";
/** How long somebody may take to sign in at the issuer. */
const patienceS = 10 * 60;
const paths = { start: "/console/oidc/start", callback: "/console/oidc/callback" };

/** @param deps.seal - keeps what the browser brings back from being read or changed there. */
export function oidcSignIn({
  options,
  sessions,
  seal,
}: {
  options: OidcSignInOptions | undefined;
  sessions: Sessions;
  seal: { close(text: string): string; open(sealed: string): string | undefined };
}): (app: FastifyInstance) => void {
  let known: Promise<Configuration> | undefined;
  const issuerOf = ({ issuer, clientId, clientSecret }: OidcSignInOptions): Promise<Configuration> => {
    const url = new URL(issuer);
    known ??= discovery(url, clientId, undefined, clientSecret === undefined ? None() : ClientSecretPost(clientSecret), {
      timeout: 5,
      // As for tokens: an issuer may be reached by http inside of a cluster.
      ...(url.protocol === "http:" ? { execute: [allowInsecureRequests] } : {}),
    }).catch((error: unknown) => {
      known = undefined; // asked again by the next one
      throw new RetryLaterError("issuer_unreachable", 5000, `${issuer} cannot be asked now: ${(error as Error).message}. Try again.`, {
        cause: error,
      });
    });
    return known;
  };
  const configured = (): OidcSignInOptions => {
    if (options !== undefined) return options;
    throw new PermanentError("sign_in_not_offered", "This server has no issuer at which people sign in to the console.", { status: 404 });
  };
  const originOf = (request: FastifyRequest, { origin }: OidcSignInOptions): string =>
    origin ?? `${isSecure(request) ? "https" : "http"}://${request.headers.host ?? ""}`;
  // `Lax`, since the issuer sends the browser back from another site.
  const cookie = (request: FastifyRequest, value: string, seconds: number): string =>
    `${stateCookie}=${value}; Path=/console/oidc; HttpOnly; SameSite=Lax; Max-Age=${seconds}${isSecure(request) ? "; Secure" : ""}`;

  return (app) => {
    app.get(paths.start, async (request, reply) => {
      const settings = configured();
      const config = await issuerOf(settings);
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
        const settings = configured();
        const sealed = cookieOf(request, stateCookie);
        const text = sealed === undefined ? undefined : seal.open(sealed);
        const flow = text === undefined ? undefined : started.parse(JSON.parse(text));
        if (flow === undefined) return await failed("sign_in_expired");
        const config = await issuerOf(settings);
        const tokens = await authorizationCodeGrant(config, new URL(request.url, originOf(request, settings)), {
          pkceCodeVerifier: flow.verifier,
          expectedState: flow.state,
          expectedNonce: flow.nonce,
          idTokenExpected: true,
        });
        const { cookie: session, expiresAt } = await sessions.beginWithToken(tokens.access_token);
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
