/** Bearer tokens of an OpenID Connect issuer, as an alternative to keys. */
import { hash as digestOf } from "node:crypto";
import { type Scope, scopes, tenantName } from "@loraline/contracts";
import { PermanentError, RetryLaterError } from "@loraline/runtime";
import { createRemoteJWKSet, errors, type JWTPayload, jwtVerify } from "jose";
import { type Caller, refused } from "./auth.ts";

export interface OidcOptions {
  /** URL, exactly as in the tokens' `iss`; below it lies `.well-known/openid-configuration`. */
  issuer: string;
  /** What the tokens' `aud` must hold. */
  audience: string;
  /** Claim with the tenant's name: its name, or a path with dots. Default `tenant`. */
  tenantClaim?: string | undefined;
  /** Claim with the scopes, a list or one string with spaces; `infer` and `loraline:infer` both count. Default `scope`. */
  scopeClaim?: string | undefined;
  /** What the header's `typ` may be; `none`: it may be absent. Default `at+jwt`, which only access tokens have. */
  tokenTypes?: readonly string[] | undefined;
  /** Longest time from a token's `iat` to its `exp`, in seconds. Default a day. */
  longestTokenS?: number | undefined;
  /** The largest allowed difference between the issuer's clock and ours. Default 30 s. */
  clockToleranceS?: number | undefined;
}

/** Only algorithms with a public key, so that those who can verify tokens cannot sign them. */
const algorithms = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"];
/** How long a verified token is trusted. Then it is verified again, so that tokens of a withdrawn key are refused. */
const rememberedMs = 60_000;
const rememberedAtMost = 10_000;
const discoverWithinMs = 5000;
/** The issuer's keys could not be fetched; the token itself may be valid. */
const issuerIsAway = new Set(["ERR_JOSE_GENERIC", "ERR_JWKS_TIMEOUT", "ERR_JWKS_INVALID"]);

/**
 * Asks the issuer at the first token and keeps its keys; new ones are fetched when a token names one that is unknown.
 * The check throws PermanentError 401 `invalid_api_key` for a token that does not hold, 403 `tenant_missing` for one that names
 * no tenant, and RetryLaterError `issuer_unreachable`.
 */
export function createTokenCheck(options: OidcOptions): (token: string) => Caller | Promise<Caller> {
  const { issuer, audience, tenantClaim = "tenant", scopeClaim = "scope", clockToleranceS = 30 } = options;
  const { tokenTypes = ["at+jwt"], longestTokenS = 24 * 60 * 60 } = options;
  const remembered = new Map<string, { caller: Caller; untilMs: number }>();
  let discovered: Promise<ReturnType<typeof createRemoteJWKSet>> | undefined;

  const keySet = (): NonNullable<typeof discovered> => {
    discovered ??= discover(issuer).catch((error: unknown) => {
      discovered = undefined; // asked again by the next token
      throw unreachable(issuer, error);
    });
    return discovered;
  };

  const verify = async (token: string, hash: string): Promise<Caller> => {
    const keys = await keySet();
    const { payload, protectedHeader } = await jwtVerify(token, keys, {
      issuer,
      audience,
      algorithms,
      clockTolerance: clockToleranceS,
      // A token of a later `iat` than now is refused, too.
      maxTokenAge: longestTokenS,
      requiredClaims: ["exp", "iat", "sub"],
    }).catch((error: unknown) => {
      if (!(error instanceof errors.JOSEError) || issuerIsAway.has(error.code)) throw unreachable(issuer, error);
      throw refused(`The token is not accepted: ${error.message}.`);
    });
    checkType(protectedHeader.typ, tokenTypes);
    checkLifetime(payload, longestTokenS);
    const caller = callerOf(payload, { tenantClaim, scopeClaim });
    if (remembered.size >= rememberedAtMost) remembered.delete(remembered.keys().next().value ?? "");
    remembered.set(hash, { caller, untilMs: Math.min(Date.now() + rememberedMs, ((payload.exp ?? 0) + clockToleranceS) * 1000) });
    return caller;
  };

  return (token) => {
    const hash = digestOf("sha256", token);
    const known = remembered.get(hash);
    if (known !== undefined && Date.now() < known.untilMs) return known.caller;
    return verify(token, hash);
  };
}

/**
 * An ID token of the same issuer may have the same audience, but says only who somebody is, and is shown to more programs.
 * @throws PermanentError 401 `invalid_api_key`
 */
function checkType(given: string | undefined, accepted: readonly string[]): void {
  const type = (given ?? "none").toLowerCase().replace(/^application\//, "");
  if (accepted.some((one) => one.toLowerCase().replace(/^application\//, "") === type)) return;
  throw refused(
    `The token's \`typ\` is ${given === undefined ? "missing" : `"${given.slice(0, 50)}"`}; accepted: ${accepted.join(", ")}. Send an access token. (Operator: OIDC_TOKEN_TYPES.)`,
  );
}

/** @throws PermanentError 401 `invalid_api_key` */
function checkLifetime({ exp = 0, iat = 0 }: JWTPayload, longestS: number): void {
  if (exp - iat <= longestS) return;
  throw refused(
    `The token lives for ${exp - iat} s (from \`iat\` to \`exp\`); at most ${longestS} s are accepted. (Operator: OIDC_MAX_TOKEN_S.)`,
  );
}

async function discover(issuer: string): Promise<ReturnType<typeof createRemoteJWKSet>> {
  const response = await fetch(`${issuer.replace(/\/+$/, "")}/.well-known/openid-configuration`, {
    signal: AbortSignal.timeout(discoverWithinMs),
  });
  if (!response.ok) throw new Error(`its discovery document answers ${response.status}`);
  const { issuer: named, jwks_uri: jwks } = (await response.json()) as { issuer?: unknown; jwks_uri?: unknown };
  // Without this check, any server to which the issuer's name leads could vouch for tokens.
  if (named !== issuer) throw new Error(`its discovery document is of another issuer (${String(named)})`);
  if (typeof jwks !== "string") throw new Error("its discovery document names no jwks_uri");
  return createRemoteJWKSet(new URL(jwks), { timeoutDuration: discoverWithinMs });
}

const unreachable = (issuer: string, error: unknown): RetryLaterError =>
  new RetryLaterError(
    "issuer_unreachable",
    5000,
    `The tokens of ${issuer} cannot be checked now: ${(error as Error).message}. Try again.`,
    {
      cause: error,
    },
  );

function callerOf(payload: JWTPayload, { tenantClaim, scopeClaim }: { tenantClaim: string; scopeClaim: string }): Caller {
  const tenant = tenantName.safeParse(claimOf(payload, tenantClaim));
  if (!tenant.success) {
    throw new PermanentError("tenant_missing", `The token names no tenant: its claim "${tenantClaim}" must be a tenant's name.`, {
      status: 403,
    });
  }
  const given = claimOf(payload, scopeClaim);
  const words = Array.isArray(given) ? given : typeof given === "string" ? given.split(/\s+/) : [];
  const has = new Set(words.map((word) => String(word).replace(/^loraline:/, "")));
  return {
    tenant: tenant.data,
    // Events allow no longer name.
    by: `oidc:${String(payload.sub)}`.slice(0, 200),
    scopes: new Set<Scope>(scopes.filter((scope) => has.has(scope))),
    models: null,
    actor: { kind: "token", id: String(payload.sub).slice(0, 512) },
    key: null,
  };
}

/** Reads a claim. If the name has dots, a claim of exactly this name is preferred to the path. */
function claimOf(payload: JWTPayload, name: string): unknown {
  if (name in payload) return payload[name];
  let value: unknown = payload;
  for (const part of name.split("."))
    value = typeof value === "object" && value !== null ? (value as Record<string, unknown>)[part] : undefined;
  return value;
}
