/** Uploads that never end take no places from other tenants, however many tenants send them. */
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { type IncomingMessage, request as httpRequest } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { json } from "node:stream/consumers";
import { test } from "@loraline/testkit";
import { describe, expect } from "vitest";
import { type GatewayUnderTest, startGateway } from "../gateway-under-test.ts";

const rows = '{"prompt":"ahoy","completion":"Arr"}\n'.repeat(20);
const boundary = "b";
const head = `--${boundary}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--${boundary}\r\ncontent-disposition: form-data; name="file"; filename="d.jsonl"\r\n\r\n`;
const form = `${head}${rows}\r\n--${boundary}--\r\n`;

interface Held extends Disposable {
  answered: Promise<{ status: number; code: string | undefined }>;
  /** Sends what is missing. */
  end(): void;
}

/** An upload of which the first half comes and then nothing. */
function hold(url: string, key: string): Held {
  const sent = httpRequest(`${url}/v1/files`, {
    method: "POST",
    headers: {
      authorization: `Bearer ${key}`,
      "content-type": `multipart/form-data; boundary=${boundary}`,
      "content-length": Buffer.byteLength(form),
    },
  });
  const half = head.length + rows.length / 2;
  sent.write(form.slice(0, half));
  const answered = new Promise<IncomingMessage>((resolve, reject) => sent.on("response", resolve).on("error", reject)).then(
    async (answer) => ({ status: answer.statusCode ?? 0, code: ((await json(answer)) as { error?: { code: string } }).error?.code }),
  );
  answered.catch(() => {});
  return { answered, end: () => void sent.end(form.slice(half)), [Symbol.dispose]: () => void sent.destroy() };
}

const upload = async (line: GatewayUnderTest, key: string): Promise<{ status: number; code: string | undefined }> => {
  const body = new FormData();
  body.set("purpose", "fine-tune");
  body.set("file", new Blob([rows]), "d.jsonl");
  const answer = await fetch(`${line.url}/v1/files`, { method: "POST", body, headers: { authorization: `Bearer ${key}` } });
  return { status: answer.status, code: ((await answer.json()) as { error?: { code: string } }).error?.code };
};

describe("uploads that are slow", () => {
  test("leave places for tenants that have none", async ({ nc, tenant }) => {
    await using spool = await spoolDir();
    await using line = await startGateway({ nc, tenant, spoolDir: spool.path });
    using held = new DisposableStack();
    const refused: string[] = [];
    for (let n = 0; n < 4; n++) {
      const key = await line.keyFor(`${tenant}-slow${n}`);
      for (let nth = 0; nth < 4; nth++) {
        const there = (await readdir(spool.path)).length;
        const one = held.use(hold(line.url, key));
        let code: string | undefined;
        one.answered.then((answer) => (code = answer.code)).catch(() => {});
        const seen = async () => code ?? (await readdir(spool.path)).length;
        await expect.poll(seen, { timeout: 60_000 }).not.toBe(there);
        if (code !== undefined) refused.push(code);
      }
    }
    expect(refused).toEqual(Array(3).fill("too_many_uploads"));
    expect(await upload(line, await line.keyFor(`${tenant}-other`))).toEqual({ status: 200, code: undefined });
  });

  test("lose their places to tenants that have none when all are taken", async ({ nc, tenant }) => {
    await using spool = await spoolDir();
    await using line = await startGateway({ nc, tenant, spoolDir: spool.path, uploadSpeed: { graceMs: 0, bytesPerSecond: 64 * 1024 } });
    using held = new DisposableStack();
    const all: Held[] = [];
    for (let n = 0; n < 16; n++) {
      all.push(held.use(hold(line.url, await line.keyFor(`${tenant}-slow${n}`))));
      await expect.poll(() => readdir(spool.path), { timeout: 60_000 }).toHaveLength(n + 1);
    }
    expect(await upload(line, await line.keyFor(`${tenant}-other`))).toEqual({ status: 200, code: undefined });
    for (const one of all) one.end();
    const answers = await Promise.all(all.map(({ answered }) => answered));
    expect(answers.filter(({ status }) => status === 200)).toHaveLength(15);
    expect(answers.filter(({ status }) => status !== 200)).toEqual([{ status: 408, code: "request_too_slow" }]);
    await expect.poll(() => readdir(spool.path)).toEqual([]);
  });
});

async function spoolDir(): Promise<{ path: string } & AsyncDisposable> {
  const path = await mkdtemp(join(tmpdir(), "loraline-uploads-"));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) };
}
