import { Readable } from "node:stream";
import { digestOf } from "@loraline/objects";
import { type GuardedFetch, PermanentError, RetryLaterError, UnavailableError } from "@loraline/runtime";
import { expect, it, vi } from "vitest";
import { fetchPictures } from "./fetch-pictures.ts";

const urls = (count: number, host = (n: number) => `host-${n}.example`) =>
  new Set(Array.from({ length: count }, (_, n) => `https://${host(n)}/${n}.png`));

/** @param get - what a server does. */
function line(get: (url: string) => Promise<string>, more: { quota?: number; put?: () => Promise<never>; now?: () => number } = {}) {
  const { quota = null, put, now } = more;
  const stored = new Map<string, string>();
  const asked: string[] = [];
  const fetch = async (url: string) => {
    asked.push(url);
    return { body: Readable.from([Buffer.from(await get(url))]) };
  };
  const deps = {
    bus: { stored: async () => new Map() },
    objects: {
      async put(_: string, kind: "picture", source: AsyncIterable<Uint8Array>) {
        await put?.();
        const bytes = Buffer.concat(await Array.fromAsync(source)).toString();
        stored.set(digestOf(bytes), bytes);
        return { kind, digest: digestOf(bytes), size: bytes.length };
      },
      get: async (_: string, { digest }: { digest: string }) => Readable.from([Buffer.from(stored.get(digest) ?? "")]),
    } as never,
    fetch: { get: fetch } as unknown as GuardedFetch,
    quotas: { of: () => ({ storageBytes: quota }) as never },
    settings: { maxBytes: 1000 },
    signal: new AbortController().signal,
    ...(now && { now }),
  };
  return { asked, fetchAll: (all: ReadonlySet<string>) => fetchPictures(deps, "acme", all) };
}

it("stores what is at each URL, and gives it back", async () => {
  const { fetchAll, asked } = line(async (url) => `bytes of ${url}`);
  const all = urls(6);
  const read = await fetchAll(all);
  for (const url of all) expect(Buffer.from(await read(url)).toString()).toBe(`bytes of ${url}`);
  expect(asked).toHaveLength(6);
  await expect(read("https://other.example/1.png")).rejects.toMatchObject({ code: "PICTURES_TOO_MANY" });
});

it("pictures that come slowly, however many, take no longer than an hour", async () => {
  let time = 0;
  const { fetchAll, asked } = line(async () => ((time += 59_000), ""), { now: () => time });
  const all = urls(70);
  const read = await fetchAll(all);
  expect(asked.length).toBeLessThan(66);
  await expect(read([...all].at(-1) as string)).rejects.toMatchObject({
    code: "FETCH_TOO_SLOW",
    message: expect.stringContaining("60 minutes"),
  });
});

it("a host that never answers is not asked a thousand times; one that has no such pictures is asked for each", async () => {
  vi.useFakeTimers({ toFake: ["setTimeout"] });
  const failing = line(async () => {
    throw new PermanentError("FETCH_TIMEOUT", "a.test took longer than 60 s");
  });
  const all = urls(1000, () => "a.test");
  const read = await failing.fetchAll(all);
  expect(failing.asked.length).toBeLessThan(20);
  await expect(read([...all].at(-1) as string)).rejects.toMatchObject({ code: "FETCH_FAILED", message: expect.stringContaining("a.test") });
  const empty = line(async () => {
    throw new PermanentError("FETCH_REFUSED", "status 404");
  });
  await empty.fetchAll(urls(30, () => "a.test"));
  expect(empty.asked).toHaveLength(30);
  vi.useRealTimers();
});

it("a host that is busy is asked again", async () => {
  let tries = 0;
  const { fetchAll } = line(async () => {
    if (++tries === 1) throw new RetryLaterError("FETCH_FAILED", 1, "status 503");
    return "bytes";
  });
  const all = urls(1);
  expect(Buffer.from(await (await fetchAll(all))([...all][0] as string)).toString()).toBe("bytes");
});

it("ends for all when there is no room for more, and at once when the store is away or the disk full", async () => {
  const full = line(async () => "x".repeat(100), { quota: 350 });
  const all = urls(50);
  const read = await full.fetchAll(all);
  expect(full.asked.length).toBeLessThan(10);
  await expect(read([...all].at(-1) as string)).rejects.toMatchObject({ code: "QUOTA_STORAGE" });
  for (const error of [new UnavailableError("STORE_UNAVAILABLE", "the store is away"), new PermanentError("DISK_FULL", "no space")]) {
    const away = line(async () => "", {
      put: async () => {
        throw error;
      },
    });
    await expect(away.fetchAll(all)).rejects.toBe(error);
    expect(away.asked.length).toBeLessThan(10);
  }
});
