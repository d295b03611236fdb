/** The OIDC issuer at which people sign in to the console: where it is asked, and what a refused or missing answer means. */
import { RetryLaterError } from "@loraline/runtime";
import {
  allowInsecureRequests,
  ClientSecretPost,
  type Configuration,
  discovery,
  None,
  refreshTokenGrant,
  ResponseBodyError,
} from "openid-client";

export interface IssuerOptions {
  /** URL, exactly as in the tokens' `iss`. */
  issuer: string;
  /** As the issuer knows the console. */
  clientId: string;
  /** Absent: a public client, which PKCE alone protects. */
  clientSecret?: string | undefined;
}

/** What the issuer gives to somebody who has signed in. */
export interface IssuedTokens {
  access: string;
  /** With it, the issuer gives the next access token, and often the next of these. Absent: it gives none. */
  refresh?: string | undefined;
}

export interface Issuer {
  /** Asked once, and kept. @throws RetryLaterError `issuer_unreachable` */
  configuration(): Promise<Configuration>;
  /**
   * @returns undefined: the issuer gives no more, since whoever signed in has signed out there, was shut out, or the token was used before.
   * @throws RetryLaterError `issuer_unreachable`
   */
  refresh(token: string): Promise<IssuedTokens | undefined>;
}

export function createIssuer({ issuer, clientId, clientSecret }: IssuerOptions): Issuer {
  const unreachable = (error: unknown): RetryLaterError =>
    new RetryLaterError("issuer_unreachable", 5000, `${issuer} cannot be asked now: ${(error as Error).message}. Try again.`, {
      cause: error,
    });
  let known: Promise<Configuration> | undefined;
  const configuration = (): Promise<Configuration> => {
    const url = new URL(issuer);
    known ??= discovery(url, clientId, undefined, clientSecret === undefined ? None() : ClientSecretPost(clientSecret), {
      timeout: 5,
      // As for tokens: an issuer may be reached by http inside of a cluster.
      ...(url.protocol === "http:" ? { execute: [allowInsecureRequests] } : {}),
    }).catch((error: unknown) => {
      known = undefined; // asked again by the next one
      throw unreachable(error);
    });
    return known;
  };
  return {
    configuration,
    async refresh(token) {
      const config = await configuration();
      try {
        const { access_token: access, refresh_token: refresh = token } = await refreshTokenGrant(config, token);
        return { access, refresh };
      } catch (error) {
        // Any other answer, such as that this client's secret is wrong, is about the line, and ends nobody's session before its token.
        if (error instanceof ResponseBodyError && error.error === "invalid_grant") return undefined;
        throw unreachable(error);
      }
    },
  };
}
