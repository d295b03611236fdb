/**
 * Fetches URLs that users give, without reaching internal servers (SSRF). Only public addresses are reached, and they are checked where the connection is made: the
 * address that was looked up and judged is the one that is connected to, for the first URL and for each redirect.
 */
import { type LookupAddress, promises as dns } from "node:dns";
import { setTimeout as delay } from "node:timers/promises";
import ipaddr from "ipaddr.js";
import { Agent, type Dispatcher, request } from "undici";
import { PermanentError, RetryLaterError } from "./errors.ts";

export interface GuardedFetchOptions {
  /** `host:port` that may be reached whatever its address is, over http too: mirrors of one's own, servers of tests. */
  allow?: readonly string[];
  /** Names to addresses; default: the system's resolver. */
  resolve?: (hostname: string) => Promise<readonly LookupAddress[]>;
  maxRedirects?: number;
  connectTimeoutMs?: number;
  /** Longest silence of the server, in milliseconds. */
  idleTimeoutMs?: number;
  /** Slowest average speed of a body. Default: 4 KiB a second, after the first minute. */
  slowest?: SlowestSpeed;
}

/** Time in which the body was not read counts neither as time nor for `graceMs`. */
interface SlowestSpeed {
  bytesPerSecond: number;
  /** During this time a body may be as slow as it likes. */
  graceMs: number;
}

interface GuardedRequest {
  /** A longer answer is refused: by its header, or when the byte after the last one comes. */
  maxBytes: number;
  /** For all of it, the body included, in milliseconds. */
  timeoutMs: number;
  signal?: AbortSignal;
  /** Sent to the origin of the URL; not to another one that it redirects to. */
  headers?: Readonly<Record<string, string>>;
}

interface GuardedResponse {
  /** Where the bytes come from, after redirects. */
  url: URL;
  headers: Readonly<Record<string, string | string[] | undefined>>;
  /** As the server says; undefined when it does not. */
  size: number | undefined;
  /** To be read to its end, or returned from early; throws what `get` throws. */
  body: AsyncIterable<Uint8Array>;
}

export interface GuardedFetch extends AsyncDisposable {
  /**
   * @throws PermanentError URL_INVALID, URL_REFUSED, ADDRESS_REFUSED, TOO_MANY_REDIRECTS, FETCH_REFUSED (the server's own no),
   * FETCH_TOO_LARGE, FETCH_TIMEOUT, FETCH_TOO_SLOW; RetryLaterError FETCH_FAILED (network, overload); the signal's reason.
   */
  get(url: string, request: GuardedRequest): Promise<GuardedResponse>;
}

const statusesOfRedirect = new Set([301, 302, 303, 307, 308]);
/** The server may be able to answer later. */
const statusesOfOverload = new Set([408, 425, 429, 500, 502, 503, 504]);
const retryAfterMs = 5000;

export function createGuardedFetch({
  allow = [],
  resolve = (hostname) => dns.lookup(hostname, { all: true }),
  maxRedirects = 5,
  connectTimeoutMs = 10_000,
  idleTimeoutMs = 30_000,
  slowest = { bytesPerSecond: 4096, graceMs: 60_000 },
}: GuardedFetchOptions = {}): GuardedFetch {
  const allowed = new Set(allow.map((entry) => entry.trim().toLowerCase()).filter((entry) => entry !== ""));
  const timeouts = { headersTimeout: idleTimeoutMs, bodyTimeout: idleTimeoutMs, maxHeaderSize: 64 * 1024 };
  const agentOf = (judged: boolean): Agent =>
    new Agent({
      ...timeouts,
      connect: {
        timeout: connectTimeoutMs,
        // Here, and not before: between a look-up of ours and one of the socket's the answer could change (DNS rebinding).
        lookup(hostname, options, callback) {
          const done = callback as (error: Error | null, address?: string | LookupAddress[], family?: number) => void;
          resolve(hostname)
            .then((found) => {
              const [first] = found;
              if (first === undefined) throw Object.assign(new Error(`${hostname} has no address`), { code: "ENOTFOUND" });
              if (judged) for (const { address } of found) judgeAddress(address, hostname);
              if (options.all === true) done(null, [...found]);
              else done(null, first.address, first.family);
            })
            .catch((error: unknown) => done(error as Error));
        },
      },
    });
  const [guarded, open] = [agentOf(true), agentOf(false)];

  const isAllowed = (url: URL): boolean => {
    const port = url.port || (url.protocol === "https:" ? "443" : "80");
    return allowed.has(`${url.hostname}:${port}`);
  };

  async function get(given: string, { maxBytes, timeoutMs, signal, headers = {} }: GuardedRequest): Promise<GuardedResponse> {
    const timeout = AbortSignal.timeout(timeoutMs);
    const aborting = signal === undefined ? timeout : AbortSignal.any([signal, timeout]);
    const explain = (error: unknown, url: URL): Error => {
      if (signal?.aborted === true) return signal.reason as Error;
      if (timeout.aborted) {
        return new PermanentError("FETCH_TIMEOUT", `${url.host} took longer than ${Math.round(timeoutMs / 1000)} s. Try a smaller file.`);
      }
      return explainFetch(error, url);
    };
    const tooLarge = (url: URL): PermanentError =>
      new PermanentError("FETCH_TOO_LARGE", `what ${url.host} sends is larger than ${maxBytes} bytes, which is the limit. Split the file.`);

    const first = judgeUrl(given, isAllowed);
    let url = first;
    for (let redirects = 0; ; redirects++) {
      let response: Dispatcher.ResponseData;
      try {
        response = await request(url, {
          dispatcher: isAllowed(url) ? open : guarded,
          signal: aborting,
          // The bytes are kept as they are; what is compressed is recognised by its content.
          headers: {
            "user-agent": "loraline",
            accept: "*/*",
            "accept-encoding": "identity",
            ...(url.origin === first.origin ? headers : {}),
          },
        });
      } catch (error) {
        throw explain(error, url);
      }
      const { statusCode, headers: answered, body } = response;
      if (statusesOfRedirect.has(statusCode) && answered.location !== undefined) {
        await discard(body);
        if (redirects === maxRedirects) {
          throw new PermanentError("TOO_MANY_REDIRECTS", `${first.host} redirects more than ${maxRedirects} times. Give the last URL.`);
        }
        const next = URL.parse(String(answered.location), url.href);
        if (next === null) throw new PermanentError("FETCH_REFUSED", `${url.host} redirects to what is no URL. Check ${nameOf(url)}.`);
        url = judgeUrl(next.href, isAllowed);
        continue;
      }
      if (statusCode !== 200) {
        await discard(body);
        if (statusesOfOverload.has(statusCode)) {
          throw new RetryLaterError("FETCH_FAILED", retryAfterMs, `${url.host} answered with status ${statusCode}`);
        }
        const why =
          statusCode === 404 ? "there is no such file" : statusCode === 401 || statusCode === 403 ? "it may not be read" : "refused";
        throw new PermanentError("FETCH_REFUSED", `${url.host} answered with status ${statusCode}: ${why}. Check ${nameOf(url)}.`);
      }
      const encoding = answered["content-encoding"];
      if (encoding !== undefined && !["", "identity", "gzip", "x-gzip", "zstd"].includes(String(encoding).toLowerCase())) {
        await discard(body);
        throw new PermanentError(
          "FETCH_REFUSED",
          `${url.host} sends the file in the encoding "${String(encoding)}", which was not asked for.`,
        );
      }
      const length = Number(answered["content-length"] ?? Number.NaN);
      if (length > maxBytes) {
        await discard(body);
        throw tooLarge(url);
      }
      async function* bounded(from: URL): AsyncGenerator<Uint8Array> {
        let bytes = 0;
        let waitedMs = 0;
        let asked = performance.now();
        try {
          for await (const chunk of body as AsyncIterable<Uint8Array>) {
            bytes += chunk.byteLength;
            waitedMs += performance.now() - asked;
            if (bytes > maxBytes) throw tooLarge(from);
            if (waitedMs > slowest.graceMs && bytes < (slowest.bytesPerSecond * waitedMs) / 1000) {
              throw new PermanentError(
                "FETCH_TOO_SLOW",
                `${from.host} sent ${bytes} bytes in ${Math.round(waitedMs / 1000)} s, and at least ${slowest.bytesPerSecond} a second are needed. Use a faster server, or upload the file yourself.`,
              );
            }
            yield chunk;
            asked = performance.now();
          }
        } catch (error) {
          throw explain(error, from);
        }
      }
      return { url, headers: answered, size: Number.isNaN(length) ? undefined : length, body: bounded(url) };
    }
  }

  return {
    get,
    async [Symbol.asyncDispose]() {
      await Promise.all([guarded.destroy(), open.destroy()]);
    },
  };
}

/** A URL without what may be secret in it. */
const nameOf = ({ protocol, host, pathname }: URL): string => `${protocol}//${host}${pathname}`;

/**
 * What of a URL is wrong whoever asks: for saying no at once to what will be fetched later.
 * @throws PermanentError URL_INVALID, URL_REFUSED
 */
export function parseFetchUrl(given: string): URL {
  const url = URL.parse(given);
  if (url === null)
    throw new PermanentError("URL_INVALID", `"${given.slice(0, 200)}" is not a URL. Give one such as https://host/data.jsonl.`, {
      param: "url",
      status: 400,
    });
  if (url.username !== "" || url.password !== "") throw urlRefused(url, "it holds a user name or a password. Remove them.");
  if (url.protocol !== "https:" && url.protocol !== "http:") {
    throw urlRefused(url, `only https is fetched, not ${url.protocol.slice(0, -1)}.`);
  }
  return url;
}

const urlRefused = (url: URL, why: string): PermanentError =>
  new PermanentError("URL_REFUSED", `${nameOf(url)} is refused: ${why}`, { param: "url", status: 400 });

function judgeUrl(given: string, isAllowed: (url: URL) => boolean): URL {
  const url = parseFetchUrl(given);
  if (isAllowed(url)) return url;
  if (url.protocol !== "https:") {
    throw urlRefused(url, `only https is fetched. An operator can allow ${url.hostname}:${url.port || "80"} with LORALINE_IMPORT_ALLOW.`);
  }
  // A literal address is never looked up, so it is judged here.
  const literal = url.hostname.replace(/^\[(.*)\]$/, "$1");
  if (ipaddr.isValid(literal)) judgeAddress(literal, url.hostname);
  return url;
}

/** Azure's wire server: a public address that only answers inside, with secrets. */
const neverPublic = new Set(["168.63.129.16"]);

/**
 * What kind of address it is when it is not one of the public internet: `private`, `loopback`, `linkLocal` (where clouds keep
 * their metadata), `multicast`, …; undefined when it is public. IPv4 inside of IPv6 is judged as what it reaches.
 */
export function nonPublicRange(address: string): string | undefined {
  if (!ipaddr.isValid(address)) return "invalid";
  const parsed = ipaddr.process(address);
  if (neverPublic.has(parsed.toString())) return "reserved";
  const range = parsed.range();
  if (range !== "unicast") return range;
  // Of IPv6 only 2000::/3 is handed out; the rest holds forms of its own, such as ::7f00:1 and site-local fec0::.
  if (parsed.kind() === "ipv6" && ((parsed.toByteArray()[0] as number) & 0xe0) !== 0x20) return "reserved";
  return undefined;
}

/** The message does not hold the address: an attacker may want to find it out. */
function judgeAddress(address: string, hostname: string): void {
  const range = nonPublicRange(address);
  if (range === undefined) return;
  throw new PermanentError(
    "ADDRESS_REFUSED",
    `${hostname} is not on the public internet (${range}), so nothing is fetched from it. An operator can allow it with LORALINE_IMPORT_ALLOW=host:port.`,
    { param: "url" },
  );
}

function explainFetch(error: unknown, url: URL): Error {
  for (let inner = error; inner instanceof Error; inner = inner.cause) {
    if (inner instanceof PermanentError || inner instanceof RetryLaterError) return inner;
    // Several addresses were tried.
    const refused = inner instanceof AggregateError ? inner.errors.find((one) => one instanceof PermanentError) : undefined;
    if (refused !== undefined) return refused;
  }
  const { code, message } = error as NodeJS.ErrnoException;
  if (code === "ENOTFOUND") {
    return new PermanentError("FETCH_REFUSED", `there is no host ${url.hostname}. Check the URL.`, { param: "url", cause: error });
  }
  return new RetryLaterError("FETCH_FAILED", retryAfterMs, `${url.host} cannot be read: ${message || (code ?? "unknown error")}`, {
    cause: error,
  });
}

/** Closes an answer that is not read. */
async function discard(body: Dispatcher.ResponseData["body"]): Promise<void> {
  await Promise.race([body.dump({ limit: 64 * 1024 }).catch(() => {}), delay(1000, undefined, { ref: false })]);
  body.destroy();
}

/** `LORALINE_IMPORT_ALLOW`: `host:port`, separated by commas. */
export const allowListOf = (setting: string | undefined): string[] =>
  (setting ?? "")
    .split(",")
    .map((entry) => entry.trim())
    .filter((entry) => entry !== "");
