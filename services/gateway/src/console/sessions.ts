/** Sessions of browsers: a cookie stands for an API key, and is judged as the key itself is, each time. */
import { createHmac, hash, randomBytes, timingSafeEqual } from "node:crypto";
import type { Bus } from "@loraline/bus";
import { buckets, everyKeyOf, sessionKey, sessionLastsMs, signInLinkLastsMs } from "@loraline/contracts";
import { type Log, PermanentError, RetryLaterError } from "@loraline/runtime";
import { decodeJwt } from "jose";
import { type Caller, hashApiKey, type KeyCheck } from "../access/auth.ts";
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
   * With an access token of the issuer, with which the session ends.
   * @throws PermanentError what the check of a token throws.
   */
  beginWithToken(token: string): Promise<Begun>;
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

/** @param deps.secret - signs cookies and links, so that NATS is asked for none that was invented. All gateways of an installation have the same one. */
export async function createSessions({
  bus,
  checkKey,
  secret,
  seal,
  log,
}: {
  bus: Pick<Bus, "bucket" | "audit">;
  checkKey: KeyCheck;
  secret: string | undefined;
  seal: ReturnType<typeof createSeal>;
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
    by: { key: string } | { key: null; token: string },
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
  const storeSession = async (
    by: { key: string } | { key: null; token: string },
    caller: Caller,
    noLaterThan: string | null,
    way: Way,
  ): Promise<Begun> => {
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

  /** Whoever the session is of is asked for anew, each time. */
  const callerOf = async ({ key, token }: { key: string | null; token?: string | null | undefined }): Promise<Caller> => {
    if (key !== null) return checkKey.byHash(key);
    const opened = token ? seal.open(token) : undefined;
    if (opened === undefined) throw ended();
    return checkKey(`Bearer ${opened}`);
  };

  return {
    async beginWithToken(token) {
      const caller = await checkKey(`Bearer ${token}`);
      // A key's check takes keys, too; what is no token of the issuer has no end by which the session could end.
      const { exp } = decodeJwt(token);
      const endsAt = new Date((exp ?? 0) * 1000).toISOString();
      return storeSession({ key: null, token: seal.close(token) }, caller, endsAt, "issuer");
    },
    async callerOf(cookie) {
      const key = keyOf(cookie);
      const session = key === undefined ? undefined : (await stored.get(key))?.value;
      if (session?.kind !== "session" || Date.parse(session.expiresAt) <= Date.now()) throw ended();
      return { ...(await callerOf(session)), sessionEndsAt: session.expiresAt };
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
