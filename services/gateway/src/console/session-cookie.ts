/** The cookie of a session: what it is called, and which pages may use it. */
import { PermanentError } from "@loraline/runtime";
import type { FastifyRequest } from "fastify";

type Asked = Pick<FastifyRequest, "headers" | "protocol" | "method">;

/** A proxy in front that ends TLS says so; somebody who only claims it makes his own browser keep the cookie for https. */
export const isSecure = ({ headers, protocol }: Asked): boolean => protocol === "https" || headers["x-forwarded-proto"] === "https";

/**
 * Browsers give a cookie to all ports of a host, so the name holds the port: two servers on one machine do not take each other's. `__Host-`
 * keeps other hosts of the domain from setting it.
 */
function nameOf(request: Asked): string {
  if (isSecure(request)) return "__Host-loraline";
  return `loraline-${/:(\d+)$/.exec(request.headers.host ?? "")?.[1] ?? "80"}`;
}

export function sessionCookieOf(request: Asked): string | undefined {
  return cookieOf(request, nameOf(request));
}

export function cookieOf(request: Pick<Asked, "headers">, name: string): string | undefined {
  for (const pair of (request.headers.cookie ?? "").split(";")) {
    const [key, value] = pair.trim().split("=", 2);
    if (key === name && value) return value;
  }
  return undefined;
}

/** Value of `Set-Cookie`. @param seconds - how long the browser keeps it; 0: it forgets it. */
export const setSessionCookie = (request: Asked, value: string, seconds: number): string =>
  `${nameOf(request)}=${value}; Path=/; HttpOnly; SameSite=Strict; Max-Age=${seconds}${isSecure(request) ? "; Secure" : ""}`;

/**
 * Lets only pages of this server's own origin use a session. The cookie alone does not say which page asks: for `SameSite` all ports of a
 * host are one site.
 * @throws PermanentError 403 `origin_refused`
 */
export function checkOrigin({ headers, method }: Asked): void {
  const { origin, host, "sec-fetch-site": site } = headers;
  const isRead = method === "GET" || method === "HEAD";
  // Browsers say by themselves from where a request comes; where they do not (plain http from another machine), `Origin` says it of writes.
  const ok =
    site !== undefined ? site === "same-origin" || (isRead && site === "none") : origin === undefined ? isRead : isOf(origin, host);
  if (ok) return;
  const from = origin ?? "another site";
  throw new PermanentError("origin_refused", `A session may be used by pages of this server only, and this request came from ${from}.`, {
    status: 403,
  });
}

const isOf = (origin: string, host: string | undefined): boolean => URL.canParse(origin) && new URL(origin).host === host;
