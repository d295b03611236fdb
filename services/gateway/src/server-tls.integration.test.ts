/** The gateway by https, with certificates that openssl makes. */
import { execFileSync } from "node:child_process";
import { copyFileSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer, get } from "node:https";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TLSSocket } from "node:tls";
import { createLog } from "@loraline/runtime";
import { test as testWithNats } from "@loraline/testkit";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { startGateway } from "./gateway-under-test.ts";
import { followTls, readTls } from "./server-tls.ts";

let dir: string;
const filesOf = (name: string) => ({ certFile: join(dir, `${name}.crt`), keyFile: join(dir, `${name}.key`) });
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), "loraline-gateway-tls-"));
  for (const name of ["one", "two"]) {
    const { certFile, keyFile } = filesOf(name);
    const names = ["-subj", `/CN=${name}`, "-addext", "subjectAltName=IP:127.0.0.1"];
    const made = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", keyFile, "-out", certFile];
    execFileSync("openssl", [...made, ...names], { stdio: "ignore" });
  }
}, 60_000);
afterAll(() => rmSync(dir, { recursive: true, force: true }));

/** @returns the status, and whose certificate the server showed. @throws what TLS says. */
const ask = (url: string, ca: Buffer[], headers: Record<string, string> = {}): Promise<{ status: number | undefined; name: unknown }> =>
  new Promise((resolve, reject) => {
    const asking = get(url, { ca, headers, agent: false }, (response) => {
      const { subject } = (response.socket as TLSSocket).getPeerCertificate();
      response.resume().on("end", () => resolve({ status: response.statusCode, name: subject.CN }));
    });
    asking.on("error", reject);
  });

describe("https", () => {
  testWithNats("the API is served with the certificate, and not without TLS", async ({ nc, tenant }) => {
    await using line = await startGateway({ nc, tenant, projector: false, tls: filesOf("one") });
    expect(line.url).toMatch(/^https:/);
    const ca = [readFileSync(filesOf("one").certFile)];
    expect(await ask(`${line.url}/v1/models`, ca, { authorization: `Bearer ${line.key}` })).toEqual({ status: 200, name: "one" });
    expect((await ask(`${line.url}/v1/models`, ca)).status).toBe(401);
    await expect(ask(`${line.url}/v1/models`, [readFileSync(filesOf("two").certFile)])).rejects.toThrow(/self-signed/);
    await expect(fetch(`${line.url.replace("https:", "http:")}/healthz`)).rejects.toThrow(/fetch failed/);
  });

  it("a certificate that is renewed holds for new connections", async () => {
    const files = filesOf("served");
    const put = (name: string): void => {
      copyFileSync(filesOf(name).keyFile, files.keyFile);
      copyFileSync(filesOf(name).certFile, files.certFile);
    };
    put("one");
    const server = createServer(await readTls(files), (_, response) => response.end());
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const url = `https://127.0.0.1:${(server.address() as AddressInfo).port}/`;
    const ca = ["one", "two"].map((name) => readFileSync(filesOf(name).certFile));
    using _following = followTls(server, files, createLog({ service: "test", level: "silent" }), 20);
    expect((await ask(url, ca)).name).toBe("one");
    put("two");
    await expect.poll(async () => (await ask(url, ca)).name).toBe("two");
    server.close();
  });

  it("files that are not there are named", async () => {
    await expect(readTls(filesOf("none"))).rejects.toMatchObject({
      code: "SETTING_MISSING",
      message: expect.stringMatching(/none\.(?:crt|key)/),
    });
  });
});
