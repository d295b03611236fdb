/** Sessions of browsers: a cookie stands for an API key, and is judged as the key itself is, each time. */
import { createHmac, hash, randomBytes, timingSafeEqual } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import type { Bus } from "@loraline/bus";
import { buckets, everyKeyOf, sessionKey, sessionLastsMs, type SessionState, signInLinkLastsMs } from "@loraline/contracts";
import { type Log, PermanentError, RetryLaterError } from "@loraline/runtime";
import { decodeJwt } from "jose";
import { type Caller, hashApiKey, type KeyCheck } from "../access/auth.ts";
import type { IssuedTokens, Issuer } from "./issuer.ts";
import type { createSeal } from "./seal.ts";

export interface Sessions {
  /**
   * The caller for whom the cookie stands.
   * @throws PermanentError 401 `session_ended`, or what the check of its key throws.
   */
  callerOf(cookie: string): Promise<Caller & { sessionEndsAt: string }>;
  /** @throws PermanentError what the check of a key throws. */
  begin(apiKey: string): Promise<Begun>;
  /**
   * With the issuer's tokens. The session lasts for as long as the issuer gives the next access token; where it gives none, it ends with this one.
   * @throws PermanentError what the check of a token throws.
   */
  beginWithTokens(tokens: IssuedTokens): Promise<Begun>;
  /** @throws PermanentError 401 `link_used` */
  beginByLink(link: string): Promise<Begun>;
  /** @returns whether there was one. */
  end(cookie: string, caller: Caller): Promise<boolean>;
  /** A link that signs one browser in with the rights of this key. */
  createLink(caller: Caller, apiKey: string): Promise<{ link: string; expiresAt: string }>;
}

interface Begun {
  cookie: string;
  caller: Caller;
  expiresAt: string;
}

/** Before its end a token is replaced by the next one. Most issuers' tokens live for five minutes or more; of a shorter one it is the last third. */
const refreshBeforeMs = 30_000;
/** How long the issuer has to give it, before another gateway may ask. */
const refreshWithinMs = 10_000;

/** Sessions and links of one tenant at a time. */
export const mostOfTenant = 500;

const ended = (): PermanentError => new PermanentError("session_ended", "Your session has ended. Sign in again.", { status: 401 });
const used = (): PermanentError =>
  new PermanentError(
    "link_used",
    "This link was used already, or is older than a quarter of an hour. Make another one with `loraline console`.",
    { status: 401 },
  );

/** By what somebody signed in. */
type Way = "key" | "link" | "issuer";

type By = { key: string } | ({ key: null } & Pick<SessionState, "token" | "refresh" | "issuedAt" | "tokenEndsAt">);

/** @param deps.secret - signs cookies and links, so that NATS is asked for none that was invented. All gateways of an installation have the same one. */
export async function createSessions({
  bus,
  checkKey,
  secret,
  seal,
  issuer,
  log,
}: {
  bus: Pick<Bus, "bucket" | "audit">;
  checkKey: KeyCheck;
  secret: string | undefined;
  seal: ReturnType<typeof createSeal>;
  issuer: Issuer | undefined;
  log: Log;
}): Promise<Sessions> {
  const stored = await bus.bucket(buckets.sessions);
  const signingKey = hash("sha256", `loraline console ${secret ?? randomBytes(32).toString("hex")}`, "buffer");
  const signatureOf = (id: string): string => createHmac("sha256", signingKey).update(id).digest("base64url");
  const newToken = (tenant: string): string => {
    const id = `${tenant}~${randomBytes(32).toString("base64url")}`;
    return `${id}~${signatureOf(id)}`;
  };
  const storedAs = (tenant: string, token: string): string => sessionKey({ tenant, hex: hash("sha256", token) });
  const keyOf = (token: string): string | undefined => {
    const [tenant = "", secret = "", signature = ""] = token.split("~", 3);
    const [given, right] = [Buffer.from(signature), Buffer.from(signatureOf(`${tenant}~${secret}`))];
    return given.length === right.length && timingSafeEqual(given, right) ? storedAs(tenant, token) : undefined;
  };
  /**
   * The oldest go, so that whoever signs in all the time takes no room of other tenants; somewhat more of them than has to be, so that not every
   * sign-in looks for the next. Cleared and not deleted: a mark of a deletion takes as much of NATS' memory as a session.
   */
  const makeRoom = async (tenant: string): Promise<void> => {
    if ((await stored.keys(everyKeyOf(tenant))).length < mostOfTenant) return;
    const oldestFirst = await stored.sizes(everyKeyOf(tenant));
    for (const { key } of oldestFirst.slice(0, Math.max(0, oldestFirst.length - mostOfTenant * 0.9))) await stored.clear(key);
  };
  /** Tells sessions apart in the audit log, and is of no use to whoever reads it there. */
  const nameOf = (token: string): string => hash("sha256", token).slice(0, 16);
  const record = (action: "session.begin" | "session.end", token: string, { tenant, actor }: Caller, details: Record<string, unknown>) =>
    bus.audit.record({
      id: `${action}/${nameOf(token)}`,
      tenant,
      action,
      target: nameOf(token),
      by: actor,
      outcome: action === "session.begin" ? "accepted" : "done",
      details,
    });
  const store = async (
    kind: "session" | "link",
    by: By,
    tenant: string,
    lastsMs: number,
    noLaterThan: string | null,
    before: (token: string, expiresAt: string) => Promise<void> = async () => {},
  ) => {
    await makeRoom(tenant);
    const token = newToken(tenant);
    const now = Date.now();
    const until = Math.min(now + lastsMs, noLaterThan === null ? Number.POSITIVE_INFINITY : Date.parse(noLaterThan));
    const expiresAt = new Date(until).toISOString();
    await before(token, expiresAt);
    await stored.put(storedAs(tenant, token), { kind, tenant, ...by, createdAt: new Date(now).toISOString(), expiresAt });
    return { token, expiresAt };
  };
  /** What cannot be recorded does not begin. */
  const storeSession = async (by: By, caller: Caller, noLaterThan: string | null, way: Way): Promise<Begun> => {
    const recorded = (token: string, expiresAt: string): Promise<void> =>
      record("session.begin", token, caller, { with: way, expires_at: expiresAt }).catch((error: unknown) => {
        const message = `The audit log cannot be written (${(error as Error).message}), so nobody is signed in. Try again.`;
        throw new RetryLaterError("audit_unavailable", 2000, message, { cause: error });
      });
    const { token, expiresAt } = await store("session", by, caller.tenant, sessionLastsMs, noLaterThan, recorded);
    return { cookie: token, caller, expiresAt };
  };
  const begin = async (keyHash: string, way: Way): Promise<Begun> => {
    const caller = await checkKey.byHash(keyHash);
    return storeSession({ key: keyHash }, caller, caller.key?.expiresAt ?? null, way);
  };

  const tokenEndOf = (token: string): string => new Date((decodeJwt(token).exp ?? 0) * 1000).toISOString();
  const sealed = ({ access, refresh }: IssuedTokens) => ({
    token: seal.close(access),
    ...(refresh === undefined || issuer === undefined ? {} : { refresh: seal.close(refresh) }),
    tokenEndsAt: tokenEndOf(access),
    issuedAt: new Date().toISOString(),
  });
  const isDue = ({ refresh, tokenEndsAt, issuedAt }: SessionState): boolean => {
    if (!refresh || !tokenEndsAt) return false;
    const lifetimeMs = Date.parse(tokenEndsAt) - Date.parse(issuedAt ?? tokenEndsAt);
    return Date.parse(tokenEndsAt) - Date.now() < Math.min(refreshBeforeMs, lifetimeMs / 3);
  };
  const hasEnded = ({ tokenEndsAt }: SessionState): boolean => Date.parse(tokenEndsAt ?? "") <= Date.now();

  /**
   * The session with a token that holds for a while. Issuers take a second use of the same refresh token for theft, so of all requests of all
   * gateways one asks; the others use the token they have, or wait. A gateway that dies here may have used it up: then somebody signs in again.
   * @throws PermanentError 401 `session_ended`; RetryLaterError `issuer_unreachable`
   */
  const withFreshToken = async (key: string, found: SessionState): Promise<SessionState> => {
    if (!isDue(found) || issuer === undefined) return found;
    let mine: SessionState | undefined;
    const now = await stored.change(key, (known) => {
      const claimed = known === undefined || !isDue(known) || Date.parse(known.refreshingUntil ?? "") > Date.now();
      mine = claimed ? undefined : { ...known, refreshingUntil: new Date(Date.now() + refreshWithinMs).toISOString() };
      return mine;
    });
    if (now === undefined) throw ended();
    if (mine === undefined) {
      if (!hasEnded(now)) return now;
      await sleep(100);
      const later = (await stored.get(key))?.value;
      if (later === undefined) throw ended();
      return withFreshToken(key, later);
    }
    const refreshToken = seal.open(mine.refresh ?? "");
    let issued: IssuedTokens | undefined;
    try {
      issued = refreshToken === undefined ? undefined : await issuer.refresh(refreshToken);
    } catch (error) {
      if (hasEnded(found)) throw error;
      log.warn({ err: error, tenant: found.tenant }, "the issuer gave no next token yet");
      return found;
    }
    if (issued === undefined) {
      await stored.clear(key);
      throw ended();
    }
    // Who signs out meanwhile stays signed out.
    const next = await stored.change(key, (known) => known && { ...known, ...sealed(issued), refreshingUntil: null });
    if (next === undefined) throw ended();
    return next;
  };

  /** Whoever the session is of is asked for anew, each time. */
  const callerOf = async ({ key, token, tenant }: SessionState): Promise<Caller> => {
    if (key !== null) return checkKey.byHash(key);
    const opened = token ? seal.open(token) : undefined;
    if (opened === undefined) throw ended();
    const caller = await checkKey(`Bearer ${opened}`);
    // The issuer has moved somebody to another tenant: what the page shows is still the first one's.
    if (caller.tenant !== tenant) throw ended();
    return caller;
  };

  return {
    async beginWithTokens(tokens) {
      const caller = await checkKey(`Bearer ${tokens.access}`);
      // A key's check takes keys, too; what is no token of the issuer has no end by which the session could end.
      const by = sealed(tokens);
      return storeSession({ key: null, ...by }, caller, "refresh" in by ? null : by.tokenEndsAt, "issuer");
    },
    async callerOf(cookie) {
      const key = keyOf(cookie);
      const session = key === undefined ? undefined : (await stored.get(key))?.value;
      if (key === undefined || session?.kind !== "session" || Date.parse(session.expiresAt) <= Date.now()) throw ended();
      return { ...(await callerOf(await withFreshToken(key, session))), sessionEndsAt: session.expiresAt };
    },
    async begin(apiKey) {
      await checkKey(`Bearer ${apiKey}`);
      return begin(hashApiKey(apiKey), "key");
    },
    async beginByLink(link) {
      const key = keyOf(link);
      if (key === undefined) throw used();
      // Of two who open it at the same time the compare-and-set lets one win: the other finds it used.
      let keyHash: string | null | undefined;
      await stored.change(key, (known) => {
        keyHash = known?.kind === "link" && Date.parse(known.expiresAt) > Date.now() ? known.key : undefined;
        return known === undefined || keyHash === undefined ? undefined : { ...known, expiresAt: known.createdAt };
      });
      if (keyHash === undefined || keyHash === null) throw used();
      return begin(keyHash, "link");
    },
    async end(cookie, caller) {
      const key = keyOf(cookie);
      if (key === undefined || (await stored.get(key))?.value.kind !== "session") return false;
      await stored.clear(key);
      // Whoever leaves is let go, also while the log cannot be written.
      await record("session.end", cookie, caller, {}).catch((error: unknown) => {
        log.error({ err: error, tenant: caller.tenant }, "the audit log lacks the end of a session");
      });
      return true;
    },
    async createLink({ tenant, key }, apiKey) {
      const { token, expiresAt } = await store("link", { key: hashApiKey(apiKey) }, tenant, signInLinkLastsMs, key?.expiresAt ?? null);
      return { link: token, expiresAt };
    },
  };
}
