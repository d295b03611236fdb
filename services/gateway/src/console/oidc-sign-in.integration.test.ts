/** Signing in to the console at a real OIDC provider, in a real browser: code flow, PKCE, nonce, state. */
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import type { Page } from "@loraline/testkit/browser";
import Provider from "oidc-provider";
import { describe, expect } from "vitest";
import { startGateway } from "../gateway-under-test.ts";
import { test as testOfConsole } from "./console-under-test.ts";

const audience = "https://loraline.example.com";

const test = testOfConsole.extend("at", async ({ nc, tenant }, { onCleanup }) => {
  const owned = new AsyncDisposableStack();
  onCleanup(() => owned.disposeAsync());
  const server = createServer();
  await new Promise<void>((resolve) => {
    server.listen(0, "127.0.0.1", resolve);
  });
  owned.defer(() => {
    server.closeAllConnections();
    server.close();
  });
  const issuer = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const oidc = { issuer, audience };
  const parameters = new URLSearchParams({ resource: audience }).toString();
  const oidcSignIn = { issuer, clientId: "console", scopes: "train infer", parameters };
  const options = { nc, tenant, projector: false, secret: "a secret of the line", oidc, oidcSignIn };
  const line = owned.use(await startGateway(options));
  const asked: URL[] = [];
  /** Whether the issuer gives tokens by which a session can go on, and how long an access token lives. */
  const gives = { accounts: true, refresh: false, seconds: 600 };
  const provider = new Provider(issuer, {
    clients: [
      {
        client_id: "console",
        token_endpoint_auth_method: "none",
        redirect_uris: [`${line.url}/console/oidc/callback`],
        grant_types: ["authorization_code", "refresh_token"],
        response_types: ["code"],
      },
    ],
    findAccount: (_context, accountId) => (gives.accounts ? { accountId, claims: () => ({ sub: accountId }) } : undefined),
    extraTokenClaims: (_context, token) => ("accountId" in token && token.accountId === "nobody" ? {} : { tenant }),
    issueRefreshToken: () => Promise.resolve(gives.refresh),
    // Each may be used once; a second use ends all that came of it.
    rotateRefreshToken: () => true,
    pkce: { required: () => true },
    cookies: { keys: ["a key of the test"] },
    features: {
      devInteractions: { enabled: true },
      resourceIndicators: {
        enabled: true,
        useGrantedResource: () => true,
        getResourceServerInfo: () => ({
          scope: "infer train promote admin",
          audience,
          get accessTokenTTL() {
            return gives.seconds;
          },
          accessTokenFormat: "jwt",
          jwt: { sign: { alg: "RS256" } },
        }),
      },
    },
  });
  const answer = provider.callback();
  server.on("request", (request, response) => {
    asked.push(new URL(request.url ?? "/", issuer));
    void answer(request, response);
  });
  const second = async () => owned.use(await startGateway(options));
  return { line, second, issuer, asked, gives, provider };
});

/** The pages of the issuer. */
async function answerAs(page: Page, login: string): Promise<void> {
  await page.locator("input[name=login]").fill(login);
  await page.locator("input[name=password]").fill("x");
  await page.getByRole("button", { name: "Sign-in" }).click();
  await page.getByRole("button", { name: "Continue" }).click();
}

describe("at the issuer", () => {
  test("somebody signs in with the tenant and the scopes of the token, and out", { timeout: 120_000 }, async ({ at, browser }) => {
    const { line, issuer, asked } = at;
    await using context = await browser.newContext();
    const page = await context.newPage();
    await page.goto(`${line.url}/console/`);
    await page.getByRole("link", { name: `Sign in at ${new URL(issuer).host}` }).click();
    await answerAs(page, "ada");
    await page.getByText(`oidc:ada · ${line.tenant}`).waitFor();
    expect(new URL(page.url()).pathname).toBe("/console/");
    const question = asked.find(({ pathname }) => pathname === "/auth")?.searchParams;
    expect(Object.fromEntries(question ?? [])).toMatchObject({
      response_type: "code",
      code_challenge_method: "S256",
      resource: audience,
      scope: "openid train infer",
    });
    const places = await page.getByRole("navigation").first().getByRole("link").allTextContents();
    expect(places).toContain("New run");
    expect(places).not.toContain("Administration");
    const [session] = (await context.cookies()).filter(({ name }) => name.startsWith("loraline-") && name !== "loraline-oidc");
    expect(session).toMatchObject({ httpOnly: true, sameSite: "Strict" });
    // The session ends with the token.
    expect((session?.expires ?? 0) * 1000 - Date.now()).toBeLessThan(601_000);
    await page.getByRole("button", { name: "Sign out" }).click();
    await page.getByRole("button", { name: "Sign in" }).waitFor();
    const after = await fetch(`${line.url}/v1/loraline/session`, { headers: { cookie: `${session?.name}=${session?.value}` } });
    expect(after.status).toBe(401);
    const { data } = (await (await line.fetch("/v1/loraline/audit?by=ada")).json()) as {
      data: { action: string; by: object; details: object }[];
    };
    expect(data.map(({ action, by }) => ({ action, by }))).toMatchObject([
      { action: "session.end", by: { kind: "token", id: "ada" } },
      { action: "session.begin", by: { kind: "token", id: "ada" } },
    ]);
    expect(data[1]?.details).toMatchObject({ with: "issuer" });
  });

  test(
    "a session outlives its token while the issuer gives the next one, of which all gateways ask for one",
    { timeout: 120_000 },
    async ({ at, browser }) => {
      const { line, asked, gives, provider } = at;
      Object.assign(gives, { refresh: true, seconds: 4 });
      const issued: string[] = [];
      const refused: string[] = [];
      provider.on("grant.success", ({ oidc }) => issued.push(String(oidc.params?.["grant_type"])));
      provider.on("grant.error", (_context, error) => refused.push(error.message));
      await using context = await browser.newContext();
      const page = await context.newPage();
      await page.goto(`${line.url}/console/oidc/start`);
      await answerAs(page, "ada");
      await page.getByText(`oidc:ada · ${line.tenant}`).waitFor();
      const [session] = (await context.cookies()).filter(({ name }) => /^loraline-\d/.test(name));
      expect((session?.expires ?? 0) * 1000 - Date.now()).toBeGreaterThan(11 * 3600_000);
      const second = await at.second();
      const ask = (url: string) =>
        fetch(`${url}/v1/loraline/session`, {
          headers: { cookie: `loraline-${new URL(url).port}=${session?.value}`, "sec-fetch-site": "same-origin" },
        });
      while (issued.filter((grant) => grant === "refresh_token").length < 3) {
        const answers = await Promise.all([line.url, second.url, line.url, second.url].map(ask));
        expect(answers.map(({ status }) => status)).toEqual([200, 200, 200, 200]);
      }
      expect(refused).toEqual([]);
      expect(asked.filter(({ pathname }) => pathname === "/token")).toHaveLength(issued.length);

      // Somebody is shut out at the issuer.
      gives.accounts = false;
      await expect.poll(async () => (await ask(second.url)).status, { timeout: 60_000 }).toBe(401);
      expect(await (await ask(line.url)).json()).toMatchObject({ error: { code: "session_ended" } });
    },
  );

  test("who has no tenant is told so, and no session begins", { timeout: 120_000 }, async ({ at: { line }, browser }) => {
    await using context = await browser.newContext();
    const page = await context.newPage();
    await page.goto(`${line.url}/console/oidc/start`);
    await answerAs(page, "nobody");
    await page.getByText("tenant_missing").waitFor();
    expect((await context.cookies()).filter(({ name }) => /^loraline-\d/.test(name))).toEqual([]);
  });

  test("over https no other host of the domain can set the cookie of a sign-in", async ({ at: { line } }) => {
    const begun = await fetch(`${line.url}/console/oidc/start`, { redirect: "manual", headers: { "x-forwarded-proto": "https" } });
    expect(begun.headers.get("set-cookie")).toMatch(/^__Host-loraline-oidc=[^;]+; Path=\/; HttpOnly; SameSite=Lax; Max-Age=600; Secure$/);
  });

  test("an answer that was asked for by no browser, or by another one, begins no session", async ({ at: { line } }) => {
    const callback = (cookie?: string) =>
      fetch(`${line.url}/console/oidc/callback?code=stolen&state=x&iss=y`, {
        redirect: "manual",
        ...(cookie === undefined ? {} : { headers: { cookie } }),
      });
    const begun = await fetch(`${line.url}/console/oidc/start`, { redirect: "manual" });
    expect(begun.status).toBe(303);
    const cookie = begun.headers.get("set-cookie")?.split(";")[0] ?? "";
    for (const answer of [await callback(), await callback("loraline-oidc=x"), await callback(cookie)]) {
      expect([answer.status, answer.headers.get("location")]).toEqual([303, expect.stringMatching(/^\/console\/#failed=sign_in_expired$/)]);
      expect(answer.headers.get("set-cookie") ?? "").not.toMatch(/loraline-\d/);
    }
  });
});
