/** The gateway as its own process: large uploads in little memory, signals, settings. */
import { type ChildProcess, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { type IncomingMessage, request } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { createBus, ensureStreams } from "@loraline/bus";
import { createTelemetry } from "@loraline/runtime";
import { test as testWithNats } from "@loraline/testkit";
import { describe, expect } from "vitest";
import { createApiKey } from "./access/auth.ts";
import { quietLog } from "./gateway-under-test.ts";

interface Running extends AsyncDisposable {
  child: ChildProcess;
  url: string;
}

/** Starts `main.ts`; resolves when it says where it listens. */
async function startMain(env: Record<string, string>): Promise<Running> {
  const child = spawn(process.execPath, ["--conditions=@loraline/source", join(import.meta.dirname, "main.ts")], {
    env: { ...env, HOST: "127.0.0.1", PORT: "0", METRICS_PORT: "0" },
    stdio: ["ignore", "pipe", "inherit"],
  });
  const said: string[] = [];
  for await (const line of createInterface(child.stdout)) {
    said.push(line);
    const { url } = JSON.parse(line) as { url?: string };
    if (url === undefined) continue;
    child.stdout.resume();
    return {
      child,
      url,
      async [Symbol.asyncDispose]() {
        if (child.exitCode === null && child.signalCode === null) {
          child.kill("SIGKILL");
          await once(child, "exit");
        }
      },
    };
  }
  throw new Error(`main.ts ended without listening: ${said.join("\n")}`);
}

/** Largest resident memory so far, in bytes. */
const peakMemory = async ({ child }: Running): Promise<number> =>
  Number(/VmHWM:\s+(\d+) kB/.exec(await readFile(`/proc/${child.pid}/status`, "utf8"))?.[1]) * 1024;

const megabyte = 1024 * 1024;
const boundary = "----loraline";

/** Posts a file of `megabytes` that is made while it is sent. */
async function uploadLarge(url: string, key: string, megabytes: number): Promise<{ id: string; sha256: string }> {
  const hash = createHash("sha256");
  const posting = request(`${url}/v1/files`, {
    method: "POST",
    headers: { authorization: `Bearer ${key}`, "content-type": `multipart/form-data; boundary=${boundary}` },
  });
  const answered = once(posting, "response") as Promise<[IncomingMessage]>;
  posting.write(`--${boundary}\r\ncontent-disposition: form-data; name="file"; filename="big.jsonl"\r\n\r\n`);
  for (let n = 0; n < megabytes; n++) {
    const part = Buffer.alloc(megabyte, `{"prompt":"${n}","completion":"Arr"}\n`);
    hash.update(part);
    if (!posting.write(part)) await once(posting, "drain");
  }
  posting.end(`\r\n--${boundary}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--${boundary}--\r\n`);
  const [response] = await answered;
  let text = "";
  for await (const part of response) text += String(part);
  const { id } = JSON.parse(text) as { id?: string };
  if (id === undefined) throw new Error(text);
  return { id, sha256: hash.digest("hex") };
}

describe("main.ts", () => {
  testWithNats(
    "takes and gives 200 MB with bounded memory, and ends on SIGTERM",
    async ({ nats, nc, tenant }) => {
      await ensureStreams(nc);
      await using telemetry = createTelemetry({ service: "test" });
      const key = await createApiKey({ bus: createBus({ nc, log: quietLog, telemetry, source: "test" }) }, { tenant, name: "test" });
      await using gateway = await startMain({ NATS_URL: nats.url });

      await uploadLarge(gateway.url, key, 8); // what any upload needs
      const before = await peakMemory(gateway);
      const began = performance.now();
      const { id, sha256 } = await uploadLarge(gateway.url, key, 200);
      const uploaded = performance.now();
      const afterUpload = await peakMemory(gateway);

      const content = await fetch(`${gateway.url}/v1/files/${id}/content`, { headers: { authorization: `Bearer ${key}` } });
      expect(content.headers.get("content-length")).toBe(String(200 * megabyte));
      const hash = createHash("sha256");
      for await (const part of content.body ?? []) hash.update(part);
      expect(hash.digest("hex")).toBe(sha256);
      const downloaded = performance.now();
      const afterDownload = await peakMemory(gateway);
      const speed = (ms: number): string => `${Math.round(200_000 / ms)} MiB/s`;
      console.log(`200 MiB: in ${speed(uploaded - began)}, out ${speed(downloaded - uploaded)}`);
      console.log(`peak memory: ${[before, afterUpload, afterDownload].map((bytes) => `${Math.round(bytes / megabyte)} MiB`).join(" → ")}`);
      // Half of what passed through; what is held at once is a few parts of it, and what the collector has not come round to.
      expect(afterUpload - before).toBeLessThan(100 * megabyte);
      expect(afterDownload - before).toBeLessThan(100 * megabyte);

      gateway.child.kill("SIGTERM");
      expect(await once(gateway.child, "exit")).toEqual([0, null]);
    },
    120_000,
  );

  testWithNats("what a killed gateway had of an upload is removed at its next start", async ({ nats, nc, tenant }) => {
    await ensureStreams(nc);
    const key = `ll-bootstrap-of-${tenant}`;
    const parent = await mkdtemp(join(tmpdir(), "gateway-"));
    const env = { NATS_URL: nats.url, BOOTSTRAP_TENANT: tenant, BOOTSTRAP_API_KEY: key, SPOOL_DIR: join(parent, "spool") };
    try {
      await using killed = await startMain(env);
      const posting = request(`${killed.url}/v1/files`, {
        method: "POST",
        headers: { authorization: `Bearer ${key}`, "content-type": `multipart/form-data; boundary=${boundary}` },
      });
      posting.on("error", () => {});
      posting.write(`--${boundary}\r\ncontent-disposition: form-data; name="file"; filename="half.jsonl"\r\n\r\n${"half ".repeat(50_000)}`);
      await expect.poll(() => readdir(env.SPOOL_DIR), { timeout: 60_000 }).toHaveLength(1);
      killed.child.kill("SIGKILL");
      await once(killed.child, "exit");
      expect(await readdir(env.SPOOL_DIR)).toHaveLength(1);
      await using _next = await startMain(env);
      expect(await readdir(env.SPOOL_DIR)).toEqual([]);
    } finally {
      await rm(parent, { recursive: true });
    }
  });

  testWithNats("takes the key that it is started with, for that tenant, with every scope", async ({ nats, nc, tenant }) => {
    await ensureStreams(nc);
    const key = `ll-bootstrap-of-${tenant}`;
    const env = { NATS_URL: nats.url, BOOTSTRAP_TENANT: tenant, BOOTSTRAP_API_KEY: key };
    await using first = await startMain(env);
    await using second = await startMain(env); // as replicas do, and as after a restart
    for (const { url } of [first, second]) {
      const response = await fetch(`${url}/v1/loraline/keys`, { headers: { authorization: `Bearer ${key}` } });
      expect(await response.json()).toMatchObject({ data: [{ name: "bootstrap" }] });
    }
  });

  testWithNats(
    "a key that it is started with, and that was revoked, does not come back at the next start",
    async ({ nats, nc, tenant }) => {
      await ensureStreams(nc);
      const key = `ll-bootstrap-of-${tenant}`;
      const env = { NATS_URL: nats.url, BOOTSTRAP_TENANT: tenant, BOOTSTRAP_API_KEY: key };
      const ask = async (url: string, path = "", method = "GET"): Promise<Response> =>
        fetch(`${url}/v1/loraline/keys${path}`, { method, headers: { authorization: `Bearer ${key}` } });
      await using first = await startMain(env);
      const { data } = (await (await ask(first.url)).json()) as { data: { id: string }[] };
      expect((await ask(first.url, `/${data[0]?.id}`, "DELETE")).status).toBe(200);
      await using second = await startMain(env); // a replica more, or a restart
      for (const { url } of [first, second]) {
        await expect.poll(async () => (await ask(url)).status).toBe(401);
        expect(await (await ask(url)).json()).toMatchObject({
          error: { code: "invalid_api_key", message: expect.stringMatching(/revoked/) },
        });
      }
    },
  );

  testWithNats("says what is wrong with its settings and ends with 1", async ({ nats }) => {
    const child = spawn(process.execPath, ["--conditions=@loraline/source", join(import.meta.dirname, "main.ts")], {
      env: { NATS_URL: nats.url, PORT: "eighty", UPLOAD_LIMIT_BYTES: "-1", TRACE_CHAT_SHARE: "2" },
    });
    let said = "";
    child.stdout.on("data", (part: Buffer) => {
      said += part.toString();
    });
    expect(await once(child, "exit")).toEqual([1, null]);
    expect(said).toMatch(/PORT/);
    expect(said).toMatch(/UPLOAD_LIMIT_BYTES/);
    expect(said).toMatch(/TRACE_CHAT_SHARE/);
  });
});
