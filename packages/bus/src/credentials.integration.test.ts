/** Users by JWT and by NKey, on a NATS of one's own that knows no passwords. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createHealth, createLog } from "@loraline/runtime";
import { spawnNatsServer } from "@loraline/testkit";
import { type NatsConnection, nkeys } from "@nats-io/transport-node";
import { afterAll, beforeAll, expect, it } from "vitest";
import { connectFromEnv, connectService, natsSecretOf } from "./connect.ts";
import { ensureStreams, streamsInPlace } from "./index.ts";

let dir: string;
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), "loraline-creds-"));
});
afterAll(() => rmSync(dir, { recursive: true }));
const file = (name: string, text: string): string => {
  writeFileSync(join(dir, name), text);
  return join(dir, name);
};

type Pair = ReturnType<typeof nkeys.createUser>;
const seedOf = (pair: Pair): string => new TextDecoder().decode(pair.getSeed());
/** A JWT as `nsc` makes it. */
function jwt(type: "operator" | "account" | "user", of: Pair, by: Pair, claims: object = {}): string {
  const encoded = (value: object): string => Buffer.from(JSON.stringify(value)).toString("base64url");
  const payload = { jti: "x", iat: 1_700_000_000, iss: by.getPublicKey(), sub: of.getPublicKey(), name: type };
  const text = `${encoded({ typ: "JWT", alg: "ed25519-nkey" })}.${encoded({ ...payload, nats: { type, version: 2, ...claims } })}`;
  return `${text}.${Buffer.from(by.sign(new TextEncoder().encode(text))).toString("base64url")}`;
}
const all = { subs: -1, data: -1, payload: -1 };
const stored = { mem_storage: -1, disk_storage: -1, streams: -1, consumer: -1 };
const limits = { ...all, imports: -1, exports: -1, wildcards: true, conn: -1, leaf: -1 };
const credsOf = (user: Pair, by: Pair): string => `-----BEGIN NATS USER JWT-----
${jwt("user", user, by, { ...all, pub: {}, sub: {} })}
------END NATS USER JWT------

-----BEGIN USER NKEY SEED-----
${seedOf(user)}
------END USER NKEY SEED------
`;
const whoIs = async (nc: NatsConnection): Promise<string> =>
  (await nc.request("$SYS.REQ.USER.INFO")).json<{ data: { user: string } }>().data.user;

it("a service comes with a file of credentials, and with the newer ones in it when it connects again", async () => {
  const [operator, account, system] = [nkeys.createOperator(), nkeys.createAccount(), nkeys.createAccount()];
  const config = {
    operator: jwt("operator", operator, operator),
    system_account: system.getPublicKey(),
    resolver: "MEMORY",
    resolver_preload: {
      [account.getPublicKey()]: jwt("account", account, operator, { limits: { ...limits, ...stored } }),
      [system.getPublicKey()]: jwt("account", system, operator, { limits }),
    },
  };
  await using server = await spawnNatsServer({ args: ["-c", file("jwt.conf", JSON.stringify(config))] });
  const [first, second] = [nkeys.createUser(), nkeys.createUser()];
  const creds = file("gateway.creds", credsOf(first, account));
  const env = { NATS_URL: server.url, NATS_CREDS_FILE: creds };
  const setup = await connectFromEnv(env, "streams");
  await ensureStreams(setup);
  await setup.close();
  await using health = await createHealth();
  const log = createLog({ service: "test", level: "silent" });
  const nc = await connectService(env, "gateway", { log, health, keepSpans: () => {}, stopping: new AbortController().signal });
  expect(await whoIs(nc)).toBe(first.getPublicKey());
  expect(await streamsInPlace(nc)).toBeUndefined();
  expect(natsSecretOf(env)).toBe(seedOf(first));

  await server.kill();
  file("gateway.creds", credsOf(second, account));
  await server.start();
  await expect.poll(() => whoIs(nc).catch(() => "not connected")).toBe(second.getPublicKey());
  await nc.close();

  const stranger = { ...env, NATS_CREDS_FILE: file("stranger.creds", credsOf(second, nkeys.createAccount())) };
  await expect(connectFromEnv(stranger, "gateway")).rejects.toMatchObject({
    code: "NATS_UNAUTHORIZED",
    message: expect.stringContaining("NATS_CREDS_FILE"),
  });
});

it("a service comes with an NKey; another one is refused", async () => {
  const user = nkeys.createUser();
  const config = { authorization: { users: [{ nkey: user.getPublicKey() }] } };
  await using server = await spawnNatsServer({ args: ["-c", file("nkey.conf", JSON.stringify(config))] });
  const nc = await connectFromEnv({ NATS_URL: server.url, NATS_NKEY: seedOf(user) }, "gateway");
  expect(await whoIs(nc)).toBe(user.getPublicKey());
  await nc.close();
  await expect(connectFromEnv({ NATS_URL: server.url, NATS_NKEY: seedOf(nkeys.createUser()) }, "gateway")).rejects.toMatchObject({
    code: "NATS_UNAUTHORIZED",
  });
});

it.each([
  ["that is missing", () => join(dir, "none.creds"), /none\.creds cannot be read \(ENOENT\)/],
  [
    "without a seed",
    () => file("half.creds", "-----BEGIN NATS USER JWT-----\n"),
    /half\.creds has no JWT and seed of a user, as `nsc generate creds` writes them/,
  ],
])("a file of credentials %s is told as such", async (_, path, why) => {
  const connecting = connectFromEnv({ NATS_URL: "nats://127.0.0.1:9", NATS_CREDS_FILE: path() }, "gateway");
  await expect(connecting).rejects.toMatchObject({ code: "NATS_UNAUTHORIZED", message: expect.stringMatching(why) });
});
