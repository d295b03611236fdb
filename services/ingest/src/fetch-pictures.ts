/** Pictures that rows of a dataset give as URLs: fetched as datasets are imported, so never from inside of the operator's network. */
import { setTimeout as sleep } from "node:timers/promises";
import { type Bus, sumOf, type TenantQuotas } from "@loraline/bus";
import { type Digest, pictureLimits } from "@loraline/contracts";
import { getBytes, type Objects } from "@loraline/objects";
import { countBytes, type GuardedFetch, PermanentError, RetryLaterError } from "@loraline/runtime";
import type { ImportSettings } from "./on-import-requested.ts";

interface FetchPicturesDeps {
  bus: Pick<Bus, "stored">;
  objects: Pick<Objects, "get" | "put">;
  fetch: GuardedFetch;
  quotas: TenantQuotas;
  settings: Pick<ImportSettings, "maxBytes">;
  signal: AbortSignal;
  /** Told again and again how many bytes came by now. */
  onBytes?: (bytes: number) => void;
  /** A clock in milliseconds, which only goes forward. */
  now?: () => number;
}

const timeoutMs = 60_000;
/** Longest time for all pictures of one dataset: meanwhile an import of its tenant waits. */
const mostMs = 60 * 60_000;
const atOnce = 4;
const tries = 3;
const pauseMs = 1000;
/** Failures of a host, one after the other, after which it is asked no more: a hundred thousand pictures would wait for each. */
const mostFailures = 8;

/** What a URL had: a picture, or a reason, without the stack that an error has. */
type Found = { digest: Digest; size: number } | { code: string; message: string };

/**
 * Stores what is at the URLs. @returns reads what was found at one of them; it throws the reason where there is nothing: QUOTA_STORAGE when they are
 * more than what the tenant, or an import, may have in all, FETCH_TOO_SLOW when their servers took too long together; else what the guarded fetch
 * throws. A server that does not answer was asked three times.
 * @throws what the store throws; the signal's reason.
 */
export async function fetchPictures(
  { bus, objects, fetch, quotas, settings, signal, onBytes, now = () => performance.now() }: FetchPicturesDeps,
  tenant: string,
  urls: ReadonlySet<string>,
): Promise<(url: string) => Promise<Uint8Array>> {
  const { storageBytes } = quotas.of(tenant);
  const most = Math.min(
    settings.maxBytes,
    storageBytes === null ? Number.POSITIVE_INFINITY : storageBytes - sumOf(await bus.stored(tenant)),
  );
  const noRoom = {
    code: "QUOTA_STORAGE",
    message: `the pictures at the URLs are more than the ${Math.max(0, most)} bytes that this tenant may still store, or import at once. Delete datasets or adapters, have the operator raise the quota storageBytes, or split the file.`,
  };
  const tooSlow = {
    code: "FETCH_TOO_SLOW",
    message: `servers took more than ${mostMs / 60_000} minutes for the pictures before it. Split the file, or upload the pictures in an archive.`,
  };
  const found = new Map<string, Found>();
  const failures = new Map<string, number>();
  const failed = new AbortController();
  const stopping = AbortSignal.any([signal, failed.signal]);
  const began = now();
  let bytes = 0;
  let stored = 0;

  const ask = async (url: string): Promise<Found> => {
    const host = URL.parse(url)?.host ?? "";
    for (let tried = 1; ; tried++) {
      if (stored > most) return noRoom;
      if (now() - began >= mostMs) return tooSlow;
      if ((failures.get(host) ?? 0) >= mostFailures)
        return { code: "FETCH_FAILED", message: `${host} failed ${mostFailures} times before. Upload the pictures in an archive.` };
      try {
        const { body } = await fetch.get(url, { maxBytes: pictureLimits.bytes, timeoutMs, signal: stopping });
        const counted = countBytes(body, (more) => onBytes?.((bytes += more)));
        const { digest, size } = await objects.put(tenant, "picture", counted);
        stored += size;
        failures.delete(host);
        return stored > most ? noRoom : { digest, size };
      } catch (error) {
        // Others are of the store, or of a disk that is full.
        const isOfServer =
          (error instanceof PermanentError || error instanceof RetryLaterError) &&
          /^(?:URL_|FETCH_|ADDRESS_REFUSED$|TOO_MANY_REDIRECTS$)/.test(error.code);
        if (stopping.aborted || !isOfServer) throw error;
        if (error instanceof RetryLaterError && tried < tries) {
          await sleep(pauseMs * tried, undefined, { signal: stopping });
          continue;
        }
        const { code, message } = error;
        // What the server itself refuses, or is too large, says nothing about its other pictures.
        if (code !== "FETCH_REFUSED" && code !== "FETCH_TOO_LARGE") failures.set(host, (failures.get(host) ?? 0) + 1);
        return { code, message };
      }
    }
  };
  const waiting = urls.values();
  const askAll = async (): Promise<void> => {
    for (const url of waiting) found.set(url, await ask(url));
  };
  try {
    await Promise.all(Array.from({ length: atOnce }, askAll));
  } finally {
    failed.abort();
  }

  return async (url) => {
    const picture = found.get(url) ?? {
      code: "PICTURES_TOO_MANY",
      message:
        "the URLs of the dataset's pictures before it are too many, or too long. Split the file, or upload the pictures in an archive.",
    };
    if ("code" in picture) throw new PermanentError(picture.code, picture.message);
    return getBytes(objects, tenant, { kind: "picture", ...picture });
  };
}
