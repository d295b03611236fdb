import { createServer, type RequestListener } from "node:http";
import type { AddressInfo } from "node:net";
import { describe, expect, it } from "vitest";
import { createGuardedFetch, type GuardedFetchOptions, nonPublicRange } from "./fetch-guarded.ts";

const limits = { maxBytes: 1000, timeoutMs: 5000 };

async function serve(listener: RequestListener) {
  const server = createServer(listener);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  return {
    port,
    url: `http://127.0.0.1:${port}`,
    allow: [`127.0.0.1:${port}`],
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

async function text(body: AsyncIterable<Uint8Array>): Promise<string> {
  const parts: Uint8Array[] = [];
  for await (const part of body) parts.push(part);
  return Buffer.concat(parts).toString("utf8");
}

async function codeOf(url: string, options: GuardedFetchOptions = {}, request = limits): Promise<string> {
  await using guarded = createGuardedFetch(options);
  try {
    await text((await guarded.get(url, request)).body);
    return "fetched";
  } catch (error) {
    return (error as { code?: string }).code ?? String(error);
  }
}

describe("a guarded fetch", () => {
  it.each([
    ["127.0.0.1", "loopback"],
    ["10.1.2.3", "private"],
    ["172.16.0.1", "private"],
    ["192.168.1.1", "private"],
    ["169.254.169.254", "linkLocal"],
    ["100.100.100.200", "carrierGradeNat"],
    ["168.63.129.16", "reserved"],
    ["0.0.0.0", "unspecified"],
    ["0.1.2.3", "unspecified"],
    ["224.0.0.1", "multicast"],
    ["255.255.255.255", "broadcast"],
    ["198.18.0.1", "reserved"],
    ["240.0.0.1", "reserved"],
    ["192.0.0.192", "reserved"],
    ["::1", "loopback"],
    ["::", "unspecified"],
    ["::ffff:10.0.0.1", "private"],
    ["::ffff:a9fe:a9fe", "linkLocal"],
    ["::7f00:1", "reserved"],
    ["64:ff9b::a9fe:a9fe", "rfc6052"],
    ["2002:7f00:1::", "6to4"],
    ["2001::1", "teredo"],
    ["fe80::1", "linkLocal"],
    ["fec0::1", expect.any(String)],
    ["fd00:ec2::254", "uniqueLocal"],
    ["ff02::1", "multicast"],
    ["100::1", expect.any(String)],
    ["2001:db8::1", "reserved"],
    ["nonsense", "invalid"],
  ])("does not take %s for public", (address, range) => {
    expect(nonPublicRange(address)).toEqual(range);
  });

  it.each(["1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "::ffff:1.1.1.1"])("takes %s for public", (address) => {
    expect(nonPublicRange(address)).toBeUndefined();
  });

  it.each([
    ["http://example.org/a", "URL_REFUSED"],
    ["file:///etc/passwd", "URL_REFUSED"],
    ["ftp://example.org/a", "URL_REFUSED"],
    ["https://user:secret@example.org/a", "URL_REFUSED"],
    ["no url", "URL_INVALID"],
    ["https://127.0.0.1/a", "ADDRESS_REFUSED"],
    ["https://2130706433/a", "ADDRESS_REFUSED"],
    ["https://0x7f.1/a", "ADDRESS_REFUSED"],
    ["https://0177.0.0.1/a", "ADDRESS_REFUSED"],
    ["https://[::1]/a", "ADDRESS_REFUSED"],
    ["https://[::ffff:169.254.169.254]/a", "ADDRESS_REFUSED"],
    ["https://169.254.169.254/latest/meta-data", "ADDRESS_REFUSED"],
    ["https://localhost/a", "ADDRESS_REFUSED"],
  ])("refuses %s", async (url, code) => {
    expect(await codeOf(url)).toBe(code);
  });

  it("refuses a name with one address that is not public among others, and connects to what it judged", async () => {
    let asked = 0;
    const resolve = () => {
      asked++;
      return Promise.resolve([
        { address: "1.1.1.1", family: 4 },
        { address: "10.0.0.5", family: 4 },
      ]);
    };
    expect(await codeOf("https://rebinding.test/a", { resolve })).toBe("ADDRESS_REFUSED");
    expect(asked).toBe(1);
    expect(await codeOf("https://nobody.test/a", { resolve: () => Promise.resolve([]) })).toBe("FETCH_REFUSED");
  });

  it("reaches an internal host that is allowed, by its name and port only", async () => {
    await using server = await serve((_, response) => void response.end("hello"));
    await using guarded = createGuardedFetch({ allow: server.allow });
    const { body, size } = await guarded.get(`${server.url}/a`, limits);
    expect([await text(body), size]).toEqual(["hello", 5]);
    expect(await codeOf(`${server.url}/a`)).toBe("URL_REFUSED");
    expect(await codeOf(`https://127.0.0.1:${server.port}/a`)).toBe("ADDRESS_REFUSED");
    const mirror = { allow: [`mirror.internal:${server.port}`], resolve: () => Promise.resolve([{ address: "127.0.0.1", family: 4 }]) };
    expect(await codeOf(`http://mirror.internal:${server.port}/a`, mirror)).toBe("fetched");
    expect(await codeOf(`https://other.internal:${server.port}/a`, mirror)).toBe("ADDRESS_REFUSED");
  });

  it("judges each redirect, counts them, and keeps its headers for the first origin", async () => {
    const seen: (string | undefined)[] = [];
    await using target = await serve((request, response) => {
      seen.push(request.headers.authorization);
      response.end("target");
    });
    await using server = await serve((request, response) => {
      const to: Record<string, string> = {
        "/metadata": "http://169.254.169.254/latest",
        "/secure-metadata": "https://169.254.169.254/latest",
        "/closed": target.url,
        "/file": "file:///etc/passwd",
        "/round": "/round",
        "/nowhere": "https://[",
        "/good": `${target.url}/a`,
      };
      response.writeHead(302, { location: to[request.url ?? ""] ?? "/" }).end();
    });
    const { allow } = server;
    expect(await codeOf(`${server.url}/metadata`, { allow })).toBe("URL_REFUSED");
    expect(await codeOf(`${server.url}/secure-metadata`, { allow })).toBe("ADDRESS_REFUSED");
    expect(await codeOf(`${server.url}/closed`, { allow })).toBe("URL_REFUSED");
    expect(await codeOf(`${server.url}/file`, { allow })).toBe("URL_REFUSED");
    expect(await codeOf(`${server.url}/nowhere`, { allow })).toBe("FETCH_REFUSED");
    expect(await codeOf(`${server.url}/round`, { allow })).toBe("TOO_MANY_REDIRECTS");
    await using guarded = createGuardedFetch({ allow: [...allow, ...target.allow] });
    const { body, url } = await guarded.get(`${server.url}/good`, { ...limits, headers: { authorization: "Bearer t" } });
    expect([await text(body), url.href, seen]).toEqual(["target", `${target.url}/a`, [undefined]]);
  });

  it("stops at the limits of size and time, and says what may be tried again", async () => {
    await using server = await serve((request, response) => {
      if (request.url === "/announced") response.writeHead(200, { "content-length": 5000 }).end("x".repeat(5000));
      else if (request.url === "/long") {
        const timer = setInterval(() => response.write("x".repeat(300)), 5);
        response.on("close", () => clearInterval(timer));
      } else if (request.url === "/slow") response.write("x");
      else if (request.url === "/cut") {
        response.writeHead(200, { "content-length": 500 }).write("half");
        setTimeout(() => response.destroy(), 20);
      } else if (request.url === "/brotli") response.writeHead(200, { "content-encoding": "br" }).end("x");
      else response.writeHead(Number(request.url?.slice(1))).end();
    });
    const { allow } = server;
    expect(await codeOf(`${server.url}/announced`, { allow })).toBe("FETCH_TOO_LARGE");
    expect(await codeOf(`${server.url}/long`, { allow })).toBe("FETCH_TOO_LARGE");
    expect(await codeOf(`${server.url}/slow`, { allow }, { ...limits, timeoutMs: 200 })).toBe("FETCH_TIMEOUT");
    expect(await codeOf(`${server.url}/cut`, { allow })).toBe("FETCH_FAILED");
    expect(await codeOf(`${server.url}/brotli`, { allow })).toBe("FETCH_REFUSED");
    expect(await codeOf(`${server.url}/404`, { allow })).toBe("FETCH_REFUSED");
    expect(await codeOf(`${server.url}/503`, { allow })).toBe("FETCH_FAILED");
    expect(await codeOf("http://127.0.0.1:1/", { allow: ["127.0.0.1:1"] })).toBe("FETCH_FAILED");
  });

  it("cuts off a body that drips, however long it would go on, and not one that is read slowly", async () => {
    await using server = await serve((request, response) => {
      if (request.url === "/fast") return void response.end("x".repeat(500));
      const timer = setInterval(() => response.write("x"), 5);
      response.on("close", () => clearInterval(timer));
    });
    const slowest = { bytesPerSecond: 100_000, graceMs: 100 };
    expect(await codeOf(`${server.url}/drip`, { allow: server.allow, slowest })).toBe("FETCH_TOO_SLOW");
    await using guarded = createGuardedFetch({ allow: server.allow, slowest });
    const { body } = await guarded.get(`${server.url}/fast`, limits);
    let read = 0;
    for await (const chunk of body) {
      read += chunk.byteLength;
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
    expect(read).toBe(500);
  });
});
