/** Pictures that rows of a dataset give as URLs: fetched as datasets are imported, so never from inside of the operator's network. */
import { setTimeout as sleep } from "node:timers/promises";
import { type Bus, sumOf, type TenantQuotas } from "@loraline/bus";
import { type GuardedFetch, PermanentError, RetryLaterError } from "@loraline/runtime";
import type { ImportSettings } from "./on-import-requested.ts";

interface FetchPictureDeps {
  bus: Pick<Bus, "stored">;
  fetch: GuardedFetch;
  quotas: TenantQuotas;
  settings: Pick<ImportSettings, "maxBytes">;
  signal: AbortSignal;
  /** A clock in milliseconds, which only goes forward. */
  now?: () => number;
}

const timeoutMs = 60_000;
/** Longest time that servers may take for all pictures of one dataset: meanwhile it has a place at which others' datasets would be read. */
const mostMs = 60 * 60_000;
const tries = 3;
const pauseMs = 1000;

/**
 * @returns a function for the pictures of one dataset. It throws QUOTA_STORAGE when they are more than what the tenant, or an import, may have
 * in all, FETCH_TOO_SLOW when their servers took too long together; else what the guarded fetch throws: a server that does not answer was asked
 * three times.
 */
export async function createPictureFetch(
  { bus, fetch, quotas, settings, signal, now = () => performance.now() }: FetchPictureDeps,
  tenant: string,
): Promise<(url: string, maxBytes: number) => Promise<Uint8Array>> {
  const { storageBytes } = quotas.of(tenant);
  let room: Promise<number> | undefined;
  let fetched = 0;
  let waitedMs = 0;
  // Asked with the first picture: most datasets have none.
  const measure = async (): Promise<number> =>
    Math.min(settings.maxBytes, storageBytes === null ? Number.POSITIVE_INFINITY : storageBytes - sumOf(await bus.stored(tenant)));
  const read = async (url: string, maxBytes: number): Promise<Uint8Array> => {
    const { body } = await fetch.get(url, { maxBytes, timeoutMs, signal });
    const parts: Uint8Array[] = [];
    for await (const part of body) parts.push(part);
    return Buffer.concat(parts);
  };
  return async (url, maxBytes) => {
    const most = await (room ??= measure());
    for (let tried = 1; ; tried++) {
      if (waitedMs >= mostMs) {
        const message = `servers took more than ${mostMs / 60_000} minutes for the pictures before it. Split the file, or upload the pictures in an archive.`;
        throw new PermanentError("FETCH_TOO_SLOW", message);
      }
      const began = now();
      try {
        const bytes = await read(url, maxBytes);
        fetched += bytes.byteLength;
        if (fetched <= most) return bytes;
      } catch (error) {
        if (!(error instanceof RetryLaterError) || tried === tries) throw error;
        await sleep(pauseMs * tried, undefined, { signal });
        continue;
      } finally {
        waitedMs += now() - began;
      }
      throw new PermanentError(
        "QUOTA_STORAGE",
        `the pictures at the URLs are more than the ${most} bytes that this tenant may still store, or import at once. Delete datasets or adapters, have the operator raise the quota storageBytes, or split the file.`,
      );
    }
  };
}
