/** Who may do what: scopes on every route, keys that expire and are revoked, tokens of an OIDC issuer. */
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { buckets, type Scope, scopes } from "@loraline/contracts";
import { test as testWithNats } from "@loraline/testkit";
import { exportJWK, generateKeyPair, type JWTPayload, SignJWT } from "jose";
import { describe, expect } from "vitest";
import { createApiKey, createKeyCheck, hashApiKey } from "./auth.ts";
import { createBus } from "@loraline/bus";
import { createTelemetry } from "@loraline/runtime";
import { type GatewayUnderTest, quietLog, startGateway } from "../gateway-under-test.ts";
import type { GatewayServiceOptions, Route } from "../service.ts";

interface Line {
  line: GatewayUnderTest;
  keyWith(over: Partial<Parameters<typeof createApiKey>[1]>): Promise<string>;
  ask(
    key: string,
    method: string,
    path: string,
    body?: object,
  ): Promise<{ status: number; body: { error?: { code: string; message: string } } & Record<string, unknown> }>;
}

async function started(options: Parameters<typeof startGateway>[0]): Promise<Line & AsyncDisposable> {
  const line = await startGateway({ projector: false, ...options });
  return {
    line,
    keyWith: (over) => createApiKey({ bus: line.bus }, { tenant: line.tenant, name: "made", ...over }),
    async ask(key, method, path, body) {
      const response = await fetch(`${line.url}${path}`, {
        method,
        headers: { authorization: `Bearer ${key}`, ...(body === undefined ? {} : { "content-type": "application/json" }) },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      });
      return { status: response.status, body: (await response.json().catch(() => ({}))) as never };
    },
    [Symbol.asyncDispose]: () => line[Symbol.asyncDispose](),
  };
}

const test = testWithNats.extend("gateway", async ({ nc, tenant }, { onCleanup }) => {
  const gateway = await started({ nc, tenant });
  onCleanup(() => gateway[Symbol.asyncDispose]());
  return gateway;
});

/** A path of the route, with something in its parameters. */
const pathOf = ({ url }: Route): string => url.replaceAll(/:\w+|\*/g, "x");

/** Want a second scope, because they start a run. */
const wantMore = new Set(["POST /v1/loraline/adapters"]);

test("invented keys are refused without a question to NATS for each, and a key that was made meanwhile lets in", async ({ nc, tenant }) => {
  await using gateway = await started({ nc, tenant });
  const { bus } = gateway.line;
  let asked = 0;
  const counting: Pick<typeof bus, "bucket"> = {
    async bucket(def) {
      const bucket = await bus.bucket(def);
      return { ...bucket, get: (key) => (asked++, bucket.get(key)) };
    },
  };
  const stopping = new AbortController();
  const check = await createKeyCheck({ bus: counting, signal: stopping.signal });
  const invented = Promise.allSettled(Array.from({ length: 2000 }, (_, n) => Promise.resolve(check(`Bearer ll-invented-${n}`))));
  const made = await gateway.keyWith({});
  expect(await check(`Bearer ${made}`)).toMatchObject({ tenant });
  const outcomes = await invented;
  stopping.abort();
  expect(outcomes.every((outcome) => outcome.status === "rejected")).toBe(true);
  expect(asked).toBeLessThan(100);
});

describe("scopes", () => {
  test("are asked for on every route but those that describe the server itself", async ({ gateway: { line, keyWith, ask } }) => {
    const keys = new Map<Scope, string>();
    for (const scope of scopes) keys.set(scope, await keyWith({ name: scope, scopes: [scope] }));
    const routes = line.routes.filter(({ method }) => method !== "HEAD");
    const open = [
      "/healthz",
      "/readyz",
      "/v1/loraline/openapi.json",
      "/v1/loraline/session/options",
      "/v1/loraline/session",
      "/console/oidc/start",
      "/console/oidc/callback",
      "/console",
      "/console/*",
    ];
    expect(routes.filter(({ scope }) => scope.length === 0).map(({ url }) => url)).toEqual(open);
    let asked = 0;
    for (const route of routes.filter(({ scope }) => scope.length > 0)) {
      expect((await fetch(line.url + pathOf(route), { method: route.method })).status, route.url).toBe(401);
      for (const [scope, key] of keys) {
        const { status, body } = await ask(key, route.method, pathOf(route));
        asked += 1;
        if (wantMore.has(`${route.method} ${route.url}`)) expect(status).toBe(403);
        else if (route.scope.includes(scope)) expect(status, `${route.method} ${route.url} with ${scope}`).not.toBe(403);
        else {
          expect([status, body.error?.code], `${route.method} ${route.url} with ${scope}`).toEqual([403, "insufficient_scope"]);
          expect(body.error?.message).toContain(`\`${route.scope[0]}\``);
          expect(body.error?.message).toContain(`it has \`${scope}\``);
        }
      }
    }
    expect(asked).toBeGreaterThan(100);
  });

  test("are what they should be", async ({ gateway: { line } }) => {
    const by = Object.groupBy(
      line.routes.filter(({ method, url }) => method !== "HEAD" && url.startsWith("/v1/")),
      ({ scope }) => scope.join(),
    );
    const listed = (scope: string) => (by[scope] ?? []).map(({ method, url }) => `${method} ${url.slice(3)}`);
    expect(listed("infer")).toEqual([
      "POST /moderations",
      "POST /chat/completions",
      "POST /completions",
      "POST /embeddings",
      "POST /responses",
      "GET /responses/:response_id",
      "GET /responses/:response_id/input_items",
      "POST /responses/:response_id/cancel",
      "DELETE /responses/:response_id",
    ]);
    expect(listed("admin")).toEqual(
      expect.arrayContaining([
        "GET /loraline/keys",
        "POST /loraline/keys",
        "GET /loraline/usage",
        "PUT /loraline/limits",
        "GET /loraline/dlq",
      ]),
    );
    expect(listed("promote")).toEqual(
      expect.arrayContaining(["POST /loraline/adapters/:adapter/promote", "POST /loraline/adapters/:adapter/rollback"]),
    );
    expect(listed("train")).toEqual(expect.arrayContaining(["POST /files", "POST /fine_tuning/jobs", "GET /loraline/runs"]));
  });
});

describe("keys", () => {
  test("are made, listed without the key, and revoked by an admin of the tenant", async ({ gateway: { line, keyWith, ask } }) => {
    const admin = await keyWith({ name: "boss", scopes: ["admin"] });
    const expires_at = new Date(Date.now() + 3_600_000).toISOString();
    const made = await ask(admin, "POST", "/v1/loraline/keys", { name: "ci", scopes: ["train", "infer"], expires_at });
    expect(made).toMatchObject({ status: 200, body: { name: "ci", scopes: ["train", "infer"], createdBy: "boss", expiresAt: expires_at } });
    const { key, id } = made.body as unknown as { key: string; id: string };
    expect((await ask(key, "GET", "/v1/models")).status).toBe(200);
    expect((await ask(key, "GET", "/v1/loraline/keys")).status).toBe(403);
    await expect
      .poll(async () => (await ask(admin, "GET", "/v1/loraline/keys")).body["data"])
      .toEqual(
        expect.arrayContaining([
          expect.objectContaining({ id, name: "ci" }),
          expect.objectContaining({ name: "test", scopes: [...scopes] }),
        ]),
      );
    const list = await ask(admin, "GET", "/v1/loraline/keys");
    expect(JSON.stringify(list.body)).not.toContain(key);
    expect(JSON.stringify(list.body)).not.toContain(hashApiKey(key));

    const stranger = await line.keyFor(`${line.tenant}-other`);
    expect((await ask(stranger, "DELETE", `/v1/loraline/keys/${id}`)).status).toBe(404);
    expect((await ask(admin, "DELETE", `/v1/loraline/keys/${id}`)).status).toBe(200);
    await expect.poll(async () => (await ask(key, "GET", "/v1/models")).status).toBe(401);
    expect((await ask(admin, "DELETE", `/v1/loraline/keys/${id}`)).status).toBe(404);
    expect(line.logged.filter(({ msg }) => /key (created|revoked)/.test(String(msg)))).toMatchObject([{ by: "boss" }, { by: "boss" }]);
  });

  test.for([
    [{}, "name"],
    [{ name: "oidc:me" }, "name"],
    [{ name: "a", scopes: [] }, "scopes"],
    [{ name: "a", scopes: ["root"] }, "scopes"],
    [{ name: "a", expires_at: "tomorrow" }, "expires_at"],
    [{ name: "a", expires_at: "2020-01-01T00:00:00Z" }, "expires_at"],
    [{ name: "a", scopes: ["infer"], models: ["pirate@0"] }, "models"],
    [{ name: "a", scopes: ["infer"], models: [] }, "models"],
    [{ name: "a", models: ["pirate"] }, "models"],
    [{ name: "a", tenant: "other" }, "tenant"],
  ] as const)("%j is refused for its %s", async ([body, field], { gateway: { line, ask } }) => {
    const refused = await ask(line.key, "POST", "/v1/loraline/keys", body);
    expect(refused.status).toBe(400);
    expect(refused.body.error?.message).toContain(field);
  });

  testWithNats("live no longer than the installation says", async ({ nc, tenant }) => {
    await using gateway = await started({ nc, tenant, keyLifetimes: { days: 30 } });
    const { ask, line } = gateway;
    const create = (expires_at?: string) =>
      ask(line.key, "POST", "/v1/loraline/keys", { name: "a", ...(expires_at === undefined ? {} : { expires_at }) });
    expect(Date.parse(String((await create()).body["expiresAt"])) - Date.now()).toBeLessThanOrEqual(30 * 86_400_000);
    const soon = new Date(Date.now() + 86_400_000).toISOString();
    expect((await create(soon)).body).toMatchObject({ expiresAt: soon });
    const refused = await create(new Date(Date.now() + 31 * 86_400_000).toISOString());
    expect(refused).toMatchObject({ status: 400, body: { error: { code: "expires_too_late", param: "expires_at" } } });
  });

  test("end when they expire, and say so", async ({ gateway: { keyWith, ask } }) => {
    const key = await keyWith({ name: "short", expiresAt: new Date(Date.now() + 300).toISOString() });
    expect((await ask(key, "GET", "/v1/models")).status).toBe(200);
    await new Promise((resolve) => setTimeout(resolve, 350));
    expect(await ask(key, "GET", "/v1/models")).toMatchObject({
      status: 401,
      body: { error: { code: "api_key_expired", message: expect.stringContaining('"short" has expired') } },
    });
  });
});

/** An issuer on loopback with one key, and tokens signed with it or with another. */
async function startIssuer() {
  const keys = { own: await generateKeyPair("RS256"), other: await generateKeyPair("RS256") };
  const jwk = { ...(await exportJWK(keys.own.publicKey)), kid: "1", alg: "RS256" };
  let away = false;
  const server = createServer((request, response) => {
    const json = (value: object) => response.writeHead(away ? 500 : 200, { "content-type": "application/json" }).end(JSON.stringify(value));
    if (request.url === "/.well-known/openid-configuration") json({ issuer: url, jwks_uri: `${url}/keys` });
    else json({ keys: [jwk] });
  });
  await new Promise<void>((resolve) => {
    server.listen(0, "127.0.0.1", resolve);
  });
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const now = () => Math.floor(Date.now() / 1000);
  return {
    url,
    now,
    setAway: (value: boolean) => {
      away = value;
    },
    token: (
      claims: JWTPayload,
      { key = "own", alg = "RS256", typ = "at+jwt" }: { key?: keyof typeof keys; alg?: string; typ?: string } = {},
    ) =>
      new SignJWT({ iss: url, aud: "loraline", sub: "alice", iat: now(), exp: now() + 60, ...claims })
        .setProtectedHeader({ alg, kid: "1", ...(typ === "none" ? {} : { typ }) })
        .sign(alg === "HS256" ? new TextEncoder().encode(JSON.stringify(jwk)) : keys[key].privateKey),
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => {
        server.close(resolve);
      });
    },
  };
}

describe("OIDC", () => {
  const withIssuer = testWithNats.extend("oidc", async ({ nc, tenant }, { onCleanup }) => {
    const owned = new AsyncDisposableStack();
    onCleanup(() => owned.disposeAsync());
    const issuer = owned.use(await startIssuer());
    const options: GatewayServiceOptions["oidc"] = {
      issuer: issuer.url,
      audience: "loraline",
      tenantClaim: "org.tenant",
      clockToleranceS: 5,
    };
    const gateway = owned.use(await started({ nc, tenant, oidc: options }));
    return { issuer, ...gateway };
  });

  withIssuer("a token is as good as a key: tenant, scopes and subject come from its claims", async ({ oidc: { issuer, line, ask } }) => {
    const org = { tenant: line.tenant };
    const infer = await issuer.token({ org, scope: "openid loraline:infer admin" });
    expect((await ask(infer, "GET", "/v1/models")).status).toBe(200);
    expect((await ask(infer, "GET", "/v1/files")).status).toBe(403);
    const made = await ask(infer, "POST", "/v1/loraline/keys", { name: "by-alice" });
    expect(made).toMatchObject({ status: 200, body: { createdBy: "oidc:alice" } });
    expect((await ask(await issuer.token({ org, scope: ["train"] }), "GET", "/v1/files")).status).toBe(200);
    expect((await ask(await issuer.token({ org }), "GET", "/v1/models")).body.error?.message).toContain("it has none");
    expect((await ask(line.key, "GET", "/v1/models")).status, "keys go on working").toBe(200);
    // OIDC allows for 255 characters, the events' audit trail for 200.
    const long = await issuer.token({ org, scope: "admin", sub: "a".repeat(255) });
    expect((await ask(long, "POST", "/v1/loraline/keys", { name: "by-a" })).body).toMatchObject({ createdBy: `oidc:${"a".repeat(195)}` });
    const stranger = await issuer.token({ org: { tenant: `${line.tenant}-other` }, scope: "admin" });
    expect((await ask(stranger, "GET", "/v1/loraline/keys")).body).toEqual({ data: [] });
  });

  withIssuer("a token that does not hold is refused, with the reason", async ({ oidc: { issuer, line, ask } }) => {
    const claims = { org: { tenant: line.tenant }, scope: "infer" };
    const of = async (token: string | Promise<string>) => {
      const { status, body } = await ask(await token, "GET", "/v1/models");
      return [status, body.error?.message];
    };
    expect(await of(issuer.token({ ...claims, exp: issuer.now() - 3 }))).toEqual([200, undefined]); // within the tolerance
    expect(await of(issuer.token({ ...claims, exp: issuer.now() - 10 }))).toEqual([401, expect.stringContaining('"exp"')]);
    expect(await of(issuer.token({ ...claims, nbf: issuer.now() + 60 }))).toEqual([401, expect.stringContaining('"nbf"')]);
    expect(await of(issuer.token({ ...claims, aud: "other" }))).toEqual([401, expect.stringContaining('"aud"')]);
    expect(await of(issuer.token({ ...claims, iss: "https://other" }))).toEqual([401, expect.stringContaining('"iss"')]);
    expect(await of(issuer.token(claims, { key: "other" }))).toEqual([401, expect.stringContaining("signature")]);
    expect(await of(issuer.token(claims, { alg: "HS256" }))).toEqual([401, expect.stringContaining("alg")]);
    expect(await of(issuer.token(claims, { typ: "JWT" }))).toEqual([401, expect.stringMatching(/`typ` is "JWT"; accepted: at\+jwt/)]);
    expect(await of(issuer.token(claims, { typ: "none" }))).toEqual([401, expect.stringContaining("`typ` is missing")]);
    expect(await of(issuer.token(claims, { typ: "application/at+JWT" }))).toEqual([200, undefined]);
    expect(await of(issuer.token({ ...claims, iat: issuer.now(), exp: issuer.now() + 90_000 }))).toEqual([
      401,
      expect.stringContaining("at most 86400 s"),
    ]);
    expect(await of(issuer.token({ ...claims, iat: issuer.now() + 60 }))).toEqual([401, expect.stringContaining('"iat"')]);
    expect(await of(issuer.token({ ...claims, iat: undefined as never }))).toEqual([401, expect.stringContaining('"iat"')]);
    expect(await of(issuer.token({ scope: "infer" }))).toEqual([403, expect.stringContaining("org.tenant")]);
    expect(await of(issuer.token({ ...claims, org: { tenant: "a.>" } }))).toEqual([403, expect.stringContaining("org.tenant")]);
    const [head, , signature] = (await issuer.token(claims)).split(".");
    const forged = Buffer.from(JSON.stringify({ iss: issuer.url, aud: "loraline", sub: "x", exp: issuer.now() + 60, ...claims })).toString(
      "base64url",
    );
    expect(await of(`${head}.${forged}.${signature}`)).toEqual([401, expect.any(String)]);
    const none = Buffer.from('{"alg":"none"}').toString("base64url");
    expect(await of(`${none}.${forged}.`)).toEqual([401, expect.any(String)]);
  });

  withIssuer("an admin with a token makes no key that lives for ever, nor does such a key", async ({ oidc: { issuer, line, ask } }) => {
    const admin = await issuer.token({ org: { tenant: line.tenant }, scope: "admin" });
    const inDays = (days: number) => new Date(Date.now() + days * 86_400_000).toISOString();
    const made = await ask(admin, "POST", "/v1/loraline/keys", { name: "mine" });
    const { key, expiresAt } = made.body as unknown as { key: string; expiresAt: string };
    expect(Math.abs(Date.parse(expiresAt) - Date.parse(inDays(90)))).toBeLessThan(60_000);
    expect(await ask(admin, "POST", "/v1/loraline/keys", { name: "late", expires_at: inDays(91) })).toMatchObject({
      status: 400,
      body: { error: { code: "expires_too_late", message: expect.stringContaining("90 days") } },
    });
    expect((await ask(key, "POST", "/v1/loraline/keys", { name: "child" })).body).toMatchObject({ expiresAt });
    expect(await ask(key, "POST", "/v1/loraline/keys", { name: "child", expires_at: inDays(100) })).toMatchObject({
      status: 400,
      body: { error: { code: "expires_too_late", message: expect.stringContaining("cannot outlive") } },
    });
    expect((await ask(line.key, "POST", "/v1/loraline/keys", { name: "ever" })).body).toMatchObject({ expiresAt: null });
  });

  withIssuer("an issuer that is away makes no token wrong; keys work meanwhile", async ({ oidc: { issuer, line, ask } }) => {
    issuer.setAway(true);
    const token = await issuer.token({ org: { tenant: line.tenant }, scope: "infer" });
    expect(await ask(token, "GET", "/v1/models")).toMatchObject({ status: 503, body: { error: { code: "issuer_unreachable" } } });
    expect((await ask(line.key, "GET", "/v1/models")).status).toBe(200);
    issuer.setAway(false);
    expect((await ask(token, "GET", "/v1/models")).status).toBe(200);
  });

  test("without an issuer a token is a wrong key", async ({ gateway: { line, ask } }) => {
    await using issuer = await startIssuer();
    expect((await ask(await issuer.token({ tenant: line.tenant, scope: "infer" }), "GET", "/v1/models")).status).toBe(401);
  });
});

testWithNats("keys of before there were scopes have all of them", async ({ nc, tenant }) => {
  await using gateway = await started({ nc, tenant });
  const bus = createBus({ nc, log: quietLog, telemetry: createTelemetry({ service: "test" }), source: "test" });
  await (
    await bus.bucket(buckets.keys)
  ).put(hashApiKey("ll-old-key-of-mine"), { tenant, name: "old", createdAt: new Date().toISOString() });
  expect((await gateway.ask("ll-old-key-of-mine", "GET", "/v1/loraline/usage")).status).toBe(200);
});
