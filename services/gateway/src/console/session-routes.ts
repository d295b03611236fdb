/** `/v1/loraline/session`: a browser signs in and out. */
import { beginSessionBody, type SessionView } from "@loraline/contracts";
import type { FastifyInstance } from "fastify";
import type { Caller } from "../access/auth.ts";
import { parsedBody } from "../body.ts";
import { badRequest } from "../errors.ts";
import { checkOrigin, sessionCookieOf, setSessionCookie } from "./session-cookie.ts";
import type { Sessions } from "./sessions.ts";

const viewOf = ({ tenant, by, scopes, models }: Caller, expiresAt: string | null): SessionView => ({
  tenant,
  name: by,
  scopes: [...scopes],
  models: models === null ? null : [...models.patterns],
  expires_at: expiresAt,
});

/** A key or a link, and nothing larger: anybody may send it. */
const signInBytes = 4096;

/** The routes of the session that need no caller. */
export function signInRoute(app: FastifyInstance, { sessions, issuer }: { sessions: Sessions; issuer: string | null }): void {
  app.get("/v1/loraline/session/options", async () => ({ issuer }));
  app.post("/v1/loraline/session", { bodyLimit: signInBytes }, async (request, reply) => {
    // Otherwise another page could sign a browser in as somebody else, who then sees what is uploaded.
    if (request.headers.origin !== undefined) checkOrigin(request);
    const body = parsedBody(beginSessionBody, request.body);
    const { cookie, caller, expiresAt } = "link" in body ? await sessions.beginByLink(body.link) : await sessions.begin(body.api_key);
    const seconds = Math.ceil((Date.parse(expiresAt) - Date.now()) / 1000);
    void reply.header("set-cookie", setSessionCookie(request, cookie, seconds)).header("cache-control", "no-store");
    return viewOf(caller, expiresAt);
  });
}

export function sessionRoutes({ sessions }: { sessions: Sessions }): (app: FastifyInstance) => void {
  return (app) => {
    app.get("/loraline/session", async ({ caller }, reply) => {
      void reply.header("cache-control", "no-store");
      return viewOf(caller, caller.sessionEndsAt ?? null);
    });
    app.delete("/loraline/session", async (request, reply) => {
      const cookie = sessionCookieOf(request);
      const ended = cookie !== undefined && (await sessions.end(cookie, request.caller));
      if (cookie !== undefined) void reply.header("set-cookie", setSessionCookie(request, "", 0));
      return { ended };
    });
    app.post("/loraline/session/links", async (request) => {
      const { caller, headers } = request;
      const apiKey = /^Bearer +(\S+) *$/i.exec(headers.authorization ?? "")?.[1];
      if (caller.key === null || apiKey === undefined)
        throw badRequest("link_needs_key", "A link to sign in is made of an API key. Send one as `Authorization: Bearer YOUR_KEY`.");
      const { link, expiresAt } = await sessions.createLink(caller, apiKey);
      return { link, expires_at: expiresAt };
    });
  };
}
