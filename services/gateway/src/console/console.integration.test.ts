/** What the console rests on: files, sessions of browsers, and the stream of changes. */
import { mkdtemp, mkdir, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { brotliDecompressSync } from "node:zlib";
import { get } from "node:http";
import { buckets, type LiveEvent, liveEvent, type SessionView } from "@loraline/contracts";
import { jetstreamManager } from "@nats-io/jetstream";
import { test as testWithNats } from "@loraline/testkit";
import { describe, expect } from "vitest";
import { createApiKey } from "../access/auth.ts";
import { adapterOf, base, playIngested, putAdapter, registerEngine, startGateway, versionOf } from "../gateway-under-test.ts";
import { datasetIdOf, runIdOf } from "../openai-ids.ts";
import { mostOfTenant } from "./sessions.ts";
import { toFile } from "openai";

const test = testWithNats.extend("tried", async ({ nc, tenant }, { onCleanup }) => {
  const dir = await mkdtemp(join(tmpdir(), "console-"));
  await mkdir(join(dir, "assets"));
  await writeFile(join(dir, "index.html"), "<!doctype html><title>Console</title>");
  await writeFile(join(dir, "assets/app-1a2b.js"), `export const text = "${"a".repeat(5000)}";`);
  await writeFile(join(dir, "..", "secret.html"), "secret");
  const line = await startGateway({ nc, tenant, consoleDir: dir, secret: "a secret of the line" });
  onCleanup(() => line[Symbol.asyncDispose]());
  const host = new URL(line.url).host;
  /** As a browser asks from a page of `origin`. */
  const asPage = (path: string, init: RequestInit & { origin?: string | null; cookie?: string; site?: string } = {}) => {
    const { origin = line.url, cookie, site, ...rest } = init;
    return fetch(line.url + path, {
      ...rest,
      headers: {
        ...(origin === null ? {} : { origin }),
        ...(cookie === undefined ? {} : { cookie }),
        ...(site === undefined ? {} : { "sec-fetch-site": site }),
        ...(init.body === undefined ? {} : { "content-type": "application/json" }),
        ...(init.headers as Record<string, string>),
      },
    });
  };
  const signIn = async (body: object) => {
    const answer = await asPage("/v1/loraline/session", { method: "POST", body: JSON.stringify(body) });
    const header = answer.headers.get("set-cookie") ?? "";
    return { status: answer.status, header, cookie: header.split(";")[0] ?? "", body: (await answer.json()) as SessionView & ErrorOf };
  };
  return { line, host, asPage, signIn };
});
interface ErrorOf {
  error?: { code: string };
}
const codeOf = async (response: Response) => ((await response.json()) as ErrorOf).error?.code;

describe("files", () => {
  test("come with a strict policy, compressed, and those with a hash in their name for ever", async ({ tried: { line } }) => {
    const page = await fetch(`${line.url}/console/runs/01J`);
    expect([page.status, await page.text()]).toEqual([200, expect.stringContaining("<title>Console</title>")]);
    expect(page.headers.get("content-security-policy")).toMatch(/^default-src 'none'; script-src 'self';.*frame-ancestors 'none'$/);
    expect(page.headers.get("cache-control")).toBe("no-cache");
    expect((await fetch(`${line.url}/console`)).status).toBe(200);
    const raw = await new Promise<{ headers: Record<string, unknown>; body: Buffer }>((resolve, reject) => {
      get(`${line.url}/console/assets/app-1a2b.js`, { headers: { "accept-encoding": "gzip, br" } }, (response) => {
        void (response.toArray() as Promise<Buffer[]>).then((parts) => resolve({ headers: response.headers, body: Buffer.concat(parts) }));
      }).on("error", reject);
    });
    expect(raw.headers).toMatchObject({
      "content-encoding": "br",
      "cache-control": "public, max-age=31536000, immutable",
      "x-content-type-options": "nosniff",
    });
    expect(brotliDecompressSync(raw.body).length).toBeGreaterThan(5000);
  });

  test("are only those of the console", async ({ tried: { line } }) => {
    const { hostname, port } = new URL(line.url);
    const ask = (path: string) =>
      new Promise<[number | undefined, string]>((resolve, reject) => {
        get({ hostname, port, path }, (response) => {
          void (response.toArray() as Promise<Buffer[]>).then((parts) => resolve([response.statusCode, Buffer.concat(parts).toString()]));
        }).on("error", reject);
      });
    for (const path of [
      "/console/../secret.html",
      "/console/%2e%2e/secret.html",
      "/console/..%2fsecret.html",
      "/console/assets/../../secret.html",
      "/console/%2fetc%2fpasswd",
      "/console/assets/nothing.js",
      "/console//etc/passwd",
    ]) {
      const [status, text] = await ask(path);
      expect(text, path).not.toContain("root:");
      expect(text, path).not.toBe("secret");
      // A path without an ending is an address inside the console.
      if (/html|js/.test(path)) expect(status, path).toBe(404);
    }
  });

  test("that were not built are said to be missing", async ({ nc, tenant }) => {
    await using line = await startGateway({ nc, tenant: `${tenant}-b`, consoleDir: "/nowhere" });
    const answer = await fetch(`${line.url}/console`);
    expect([answer.status, await codeOf(answer)]).toEqual([404, "console_missing"]);
  });
});

describe("a session", () => {
  test("has the rights of its key, and no page can read its cookie", async ({ tried: { line, asPage, signIn } }) => {
    const apiKey = await createApiKey({ bus: line.bus }, { tenant: line.tenant, name: "reader", scopes: ["infer"], models: ["pirate"] });
    const { status, header, cookie, body } = await signIn({ api_key: apiKey });
    expect(status).toBe(200);
    expect(header).toMatch(/^loraline-\d+=[\w~-]+; Path=\/; HttpOnly; SameSite=Strict; Max-Age=\d+$/);
    expect(header).not.toContain(apiKey);
    expect(body).toMatchObject({ tenant: line.tenant, name: "reader", scopes: ["infer"], models: ["pirate"] });
    const shown = await asPage("/v1/loraline/session", { cookie, origin: null, site: "same-origin" });
    expect(await shown.json()).toEqual(body);
    const refused = await asPage("/v1/loraline/runs", { cookie, origin: null });
    expect([refused.status, await codeOf(refused)]).toEqual([403, "insufficient_scope"]);
    const chat = await asPage("/v1/chat/completions", {
      method: "POST",
      cookie,
      body: JSON.stringify({ model: `${line.tenant}/parrot`, messages: [] }),
    });
    expect(await codeOf(chat)).toBe("model_not_allowed");
    const wrong = await signIn({ api_key: "ll-wrong" });
    expect([wrong.status, wrong.header, wrong.body.error?.code]).toEqual([401, "", "invalid_api_key"]);
  });

  test("is kept to https behind a proxy that ends TLS", async ({ tried: { line, asPage } }) => {
    const proxied = { "x-forwarded-proto": "https" };
    const body = JSON.stringify({ api_key: line.key });
    const header = (await asPage("/v1/loraline/session", { method: "POST", body, headers: proxied })).headers.get("set-cookie") ?? "";
    expect(header).toMatch(/^__Host-loraline=.*; Secure$/);
    const plain = header.replace("__Host-loraline", `loraline-${new URL(line.url).port}`).split(";")[0] ?? "";
    expect((await asPage("/v1/loraline/runs", { cookie: plain, headers: proxied })).status).toBe(401);
  });

  test("can be used by pages of the server's own origin only", async ({ tried: { line, host, asPage, signIn } }) => {
    const { cookie } = await signIn({ api_key: line.key });
    const body = JSON.stringify({ requests_per_minute: 1000 });
    const put = (origin: string | null, site?: string) =>
      asPage("/v1/loraline/limits", { method: "PUT", body, cookie, origin, ...(site === undefined ? {} : { site }) });
    for (const [origin, site] of [
      ["https://evil.example"],
      // Another port of the same machine is the same site, but not the same origin.
      ["http://127.0.0.1:9", "same-site"],
      [`http://${host}`, "cross-site"],
      ["null"],
      [null],
    ] as const) {
      const answer = await put(origin, site);
      expect([origin, answer.status, await codeOf(answer)]).toEqual([origin, 403, "origin_refused"]);
    }
    expect((await asPage("/v1/loraline/runs", { cookie, origin: null, site: "cross-site" })).status).toBe(403);
    expect((await put(line.url)).status).toBe(200);
    expect((await put(line.url, "same-origin")).status).toBe(200);
    // Nobody signs a browser in from elsewhere, either.
    const elsewhere = await asPage("/v1/loraline/session", {
      method: "POST",
      origin: "https://evil.example",
      body: JSON.stringify({ api_key: line.key }),
    });
    expect([elsewhere.status, elsewhere.headers.get("set-cookie")]).toEqual([403, null]);
  });

  test("ends with its sign-out, with its key, and on every gateway", async ({ nc, tried: { line, asPage, signIn } }) => {
    await using second = await startGateway({ nc, tenant: line.tenant, projector: false, secret: "a secret of the line" });
    const port = (url: string) => new URL(url).port;
    const onSecond = (cookie: string) =>
      fetch(`${second.url}/v1/loraline/session`, { headers: { cookie: cookie.replace(port(line.url), port(second.url)) } });
    const first = await signIn({ api_key: line.key });
    expect((await onSecond(first.cookie)).status).toBe(200);
    const out = await asPage("/v1/loraline/session", { method: "DELETE", cookie: first.cookie });
    expect([await out.json(), out.headers.get("set-cookie")]).toEqual([{ ended: true }, expect.stringContaining("Max-Age=0")]);
    for (const answer of [await onSecond(first.cookie), await asPage("/v1/loraline/session", { cookie: first.cookie })])
      expect([answer.status, await codeOf(answer)]).toEqual([401, "session_ended"]);

    const other = await createApiKey({ bus: line.bus }, { tenant: line.tenant, name: "other" });
    const { cookie } = await signIn({ api_key: other });
    const { data } = (await (await line.fetch("/v1/loraline/keys")).json()) as { data: { id: string; name: string }[] };
    const id = data.find(({ name }) => name === "other")?.id ?? "";
    expect((await line.fetch(`/v1/loraline/keys/${id}`, { method: "DELETE" })).status).toBe(200);
    await expect.poll(async () => (await asPage("/v1/loraline/session", { cookie })).status).toBe(401);
    const invented = await asPage("/v1/loraline/session", { cookie: `${cookie.slice(0, -1)}x` });
    expect(await codeOf(invented)).toBe("session_ended");
  });

  test("is in the audit log when it begins and when it is ended", async ({ tried: { line, asPage, signIn } }) => {
    const apiKey = await createApiKey({ bus: line.bus }, { tenant: line.tenant, name: "ada" });
    const { cookie } = await signIn({ api_key: apiKey });
    await asPage("/v1/loraline/session", { method: "DELETE", cookie });
    const { link } = (await (await line.fetch("/v1/loraline/session/links", { method: "POST" })).json()) as { link: string };
    const second = await signIn({ link });
    await signIn({ api_key: "ll-wrong" });
    const log = await line.fetch("/v1/loraline/audit?limit=10");
    const { data } = (await log.json()) as { data: { action: string; target: string; by: { name: string }; details: object }[] };
    const told = data.filter(({ action }) => action.startsWith("session."));
    expect(told.map(({ action, by }) => `${action} ${by.name}`)).toEqual(["session.begin test", "session.end ada", "session.begin ada"]);
    expect(told[0]?.details).toMatchObject({ with: "link", expires_at: second.body["expires_at"] });
    expect(told[2]?.details).toMatchObject({ with: "key" });
    expect(told[1]?.target, "which one it was").toBe(told[2]?.target);
    expect(JSON.stringify(data)).not.toContain(cookie.split("=")[1]);
  });

  test("is begun by a link, once", async ({ tried: { line, asPage, signIn } }) => {
    const made = await line.fetch("/v1/loraline/session/links", { method: "POST" });
    const { link } = (await made.json()) as { link: string };
    const both = await Promise.all([signIn({ link }), signIn({ link })]);
    expect(both.map(({ status }) => status).toSorted((a, b) => a - b)).toEqual([200, 401]);
    const { cookie, body } = both.find(({ status }) => status === 200)!;
    expect(body).toMatchObject({ tenant: line.tenant, name: "test" });
    expect((await signIn({ link })).body.error?.code).toBe("link_used");
    // A session makes no links, and a link is no cookie.
    const again = await asPage("/v1/loraline/session/links", { method: "POST", cookie });
    expect(await codeOf(again)).toBe("link_needs_key");
    const unused = ((await (await line.fetch("/v1/loraline/session/links", { method: "POST" })).json()) as { link: string }).link;
    expect((await asPage("/v1/loraline/session", { cookie: `${cookie.split("=")[0]}=${unused}` })).status).toBe(401);
  });

  test("takes the place of the tenant's oldest one when there are very many", { timeout: 30_000 }, async ({ nc, tried, tenant }) => {
    const { line, asPage, signIn } = tried;
    const oldest = await signIn({ api_key: line.key });
    const sessions = await line.bus.bucket(buckets.sessions);
    const later = new Date(Date.now() + 1000).toISOString();
    const entry = { kind: "session", tenant, key: "0".repeat(64), createdAt: later, expiresAt: later } as const;
    const others = Array.from({ length: mostOfTenant - 2 }, (_, n) => sessions.put(`${tenant}.${n}`, entry));
    await Promise.all([
      ...others,
      sessions.put(`${tenant}-b.1`, { ...entry, tenant: `${tenant}-b`, createdAt: "2026-01-01T00:00:00.000Z" }),
    ]);
    const statusOf = async (cookie: string) => (await asPage("/v1/loraline/session", { cookie })).status;
    const newest = await signIn({ api_key: line.key });
    expect([await statusOf(oldest.cookie), await statusOf(newest.cookie)]).toEqual([200, 200]);
    await signIn({ api_key: line.key });
    expect([await statusOf(oldest.cookie), await statusOf(newest.cookie)]).toEqual([401, 200]);
    expect(await sessions.get(`${tenant}-b.1`)).toBeDefined();
    // No marks of those that went are left: whoever signs in all the time would fill NATS' memory with them.
    const { state } = await (await jetstreamManager(nc)).streams.info("KV_sessions", { subjects_filter: `$KV.sessions.${tenant}.>` });
    expect(Object.keys(state.subjects ?? {}).length).toBeLessThan(mostOfTenant);
  });
});

describe("the stream of changes", () => {
  /** Reads events until the test is done with them. */
  async function follow(url: string, key: string, lastId?: string) {
    const stop = new AbortController();
    const response = await fetch(`${url}/v1/loraline/live`, {
      headers: {
        authorization: `Bearer ${key}`,
        accept: "text/event-stream",
        ...(lastId === undefined ? {} : { "last-event-id": lastId }),
      },
      signal: stop.signal,
    });
    const events: LiveEvent[] = [];
    let [newest, hasEnded] = ["", false];
    void (async () => {
      let text = "";
      for await (const chunk of response.body!.pipeThrough(new TextDecoderStream())) {
        text += chunk;
        for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
          const block = text.slice(0, end);
          text = text.slice(end + 2);
          newest = /^id: (.*)$/m.exec(block)?.[1] ?? newest;
          events.push(liveEvent.parse(JSON.parse(/^data: (.*)$/m.exec(block)?.[1] ?? "")));
        }
      }
    })()
      .catch(() => undefined)
      .finally(() => (hasEnded = true));
    return {
      events,
      newest: () => newest,
      hasEnded: () => hasEnded,
      [Symbol.dispose]: () => stop.abort(),
    };
  }
  const told = ({ events }: { events: LiveEvent[] }) =>
    events.map((event) =>
      event.type === "run"
        ? `run ${event.run.spec.adapter} ${event.run.phase}`
        : event.type === "dataset"
          ? `dataset ${event.dataset.status}`
          : event.type === "adapter"
            ? `adapter ${event.adapter}`
            : event.type === "ready"
              ? `ready ${event.resumed ? "resumed" : "anew"}`
              : event.type,
    );

  test("tells a tenant's own changes, and goes on after the last one that was seen", async ({ tried: { line } }) => {
    await registerEngine(line.bus);
    const bound = await createApiKey(
      { bus: line.bus },
      { tenant: line.tenant, name: "bound", scopes: ["infer", "promote"], models: ["parrot"] },
    );
    using own = await follow(line.url, line.key);
    using other = await follow(line.url, await line.keyFor(`${line.tenant.slice(2)}-other`));
    using narrow = await follow(line.url, bound);
    await expect.poll(() => told(own)).toEqual(["ready anew"]);

    const rows = Buffer.from('{"prompt":"ahoy","completion":"Arr"}\n'.repeat(20));
    const file = (await line.openai.files.create({ file: await toFile(rows, "rows.jsonl"), purpose: "fine-tune" })).id;
    await playIngested(line.bus, line.tenant, datasetIdOf(file) ?? "");
    await expect.poll(() => told(own)).toContain("dataset ingested");
    const seen = own.newest();
    await line.openai.fineTuning.jobs.create({ model: base, training_file: file, suffix: "pirate" });
    await expect.poll(() => told(own)).toContain("run pirate requested");
    for (const name of ["pirate", "parrot"]) await putAdapter(line.bus, adapterOf(line.tenant, name, [versionOf(line.tenant, name, 1)]));
    await expect.poll(() => told(own)).toContain("adapter parrot");

    await expect.poll(() => told(narrow)).toEqual(["ready anew", "adapter parrot"]);
    expect(told(other)).toEqual(["ready anew"]);
    using resumed = await follow(line.url, line.key, seen);
    await expect.poll(() => told(resumed)).toEqual(["ready resumed", "run pirate requested", "adapter pirate", "adapter parrot"]);
    // A gateway that does not know what was seen says so.
    using anew = await follow(line.url, line.key, "00000000-0000-0000-0000-000000000000-7");
    await expect.poll(() => told(anew)).toEqual(["ready anew"]);
  });

  test("keeps no more bytes of what was missed than a gateway has memory for", async ({ tried: { line } }) => {
    await registerEngine(line.bus);
    const file = await line.openai.files.create({
      file: await toFile(Buffer.from('{"prompt":"ahoy","completion":"Arr"}\n'.repeat(20)), "rows.jsonl"),
      purpose: "fine-tune",
    });
    const { id } = await line.openai.fineTuning.jobs.create({ model: base, training_file: file.id, suffix: "pirate" });
    using page = await follow(line.url, line.key);
    await expect.poll(() => told(page)).toEqual(["ready anew"]);
    const seen = page.newest();
    const runs = await line.bus.bucket(buckets.runs);
    const long = { code: "X", message: "x".repeat(400_000) };
    for (let n = 0; n < 12; n++)
      await runs.change(`${line.tenant}.${runIdOf(id)}`, (run) => run && { ...run, seq: run.seq + 1, error: long });
    await expect.poll(() => told(page).length).toBeGreaterThan(12);
    using resumed = await follow(line.url, line.key, seen);
    await expect.poll(() => told(resumed)).toEqual(["ready anew"]);
  });

  test("ends with the gateway, which does not wait for open pages", async ({ nc, tenant }) => {
    const line = await startGateway({ nc, tenant, projector: false, drainMs: 60_000 });
    using own = await follow(line.url, line.key);
    await expect.poll(() => own.events.length).toBe(1);
    await line[Symbol.asyncDispose]();
    await expect.poll(() => own.hasEnded()).toBe(true);
  });

  test("is open so often for one tenant, and others are not kept out by it", { timeout: 30_000 }, async ({ tried: { line }, tenant }) => {
    const stop = new AbortController();
    const statusOf = async (key: string) => {
      const headers = { authorization: `Bearer ${key}`, accept: "text/event-stream" };
      return (await fetch(`${line.url}/v1/loraline/live`, { headers, signal: stop.signal })).status;
    };
    const statuses = await Promise.all(Array.from({ length: 203 }, () => statusOf(line.key)));
    expect(statuses.filter((status) => status === 429)).toHaveLength(3);
    expect(await statusOf(await line.keyFor(`${tenant}-b`))).toBe(200);
    stop.abort();
    const again = new AbortController();
    const headers = { authorization: `Bearer ${line.key}`, accept: "text/event-stream" };
    await expect.poll(async () => (await fetch(`${line.url}/v1/loraline/live`, { headers, signal: again.signal })).status).toBe(200);
    again.abort();
  });

  test("wants to be accepted as one", async ({ tried: { line } }) => {
    const answer = await line.fetch("/v1/loraline/live");
    expect([answer.status, await codeOf(answer)]).toEqual([400, "stream_only"]);
  });
});
