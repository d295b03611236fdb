/**
 * What a tenant may send to this gateway: so many uploads at once, so many bytes in one minute, and no more than its room in the store.
 * Bytes of a minute are counted by all gateways together, as limits on tokens are (budget-slices.ts), before they are written to the disk.
 */
import { type Bus, judgeStorage, sumOf } from "@loraline/bus";
import { buckets, type Quotas, uploadBudgetKey } from "@loraline/contracts";
import { type Log, natsFull, natsOutage, PermanentError, RetryLaterError } from "@loraline/runtime";
import { createBudgetSlices } from "./budget-slices.ts";
import { type Amounts, minuteMs, none } from "./decide-slice.ts";

/** Uploads at once at one gateway: each may take as much of its disk as an upload may have. */
const mostUploadsOfTenant = 4;
const mostUploads = 16;
/** The last places are for tenants that have none. */
const placesForOthers = 4;

export interface UploadSpeed {
  /** During this time an upload keeps its place however slow it is, in ms. */
  graceMs: number;
  /** After that time one of a lower average speed, in bytes a second, loses its place to a tenant that has none where all are taken. */
  bytesPerSecond: number;
}
const uploadSpeed: UploadSpeed = { graceMs: 30_000, bytesPerSecond: 64 * 1024 };

/** Bytes of an upload besides its files: boundaries, headers and fields. */
export const multipartOverhead = 64 * 1024;

export interface Upload extends Disposable {
  /**
   * To be called with the size of each piece of a file before it is written.
   * @throws PermanentError 403 QUOTA_STORAGE, 408 `request_too_slow`, if its place was given to another; RetryLaterError
   * QUOTA_UPLOAD_RATE, if the client did not say how much it sends.
   */
  arrived(bytes: number): Promise<void>;
  /** To be called when a file has come whole: from here on it is not the client that takes the time. */
  whole(): void;
}

export interface Uploads extends AsyncDisposable {
  /**
   * Counts an upload, or the fetch of an adapter, by this gateway until it is disposed. Nothing has been written yet.
   * @param contentLength - bytes of the body as the client announces them; null: it does not.
   * @throws PermanentError 403 QUOTA_STORAGE, 413 QUOTA_UPLOAD_RATE; RetryLaterError `too_many_uploads`, QUOTA_UPLOAD_RATE.
   */
  begin(tenant: string, contentLength: number | null): Promise<Upload>;
}

export async function createUploads({
  bus,
  quotasOf,
  log,
  gateway,
  now,
  speed = uploadSpeed,
}: {
  bus: Pick<Bus, "bucket" | "stored">;
  quotasOf: (tenant: string) => Quotas;
  log: Log;
  /** Names this gateway; new with each start. */
  gateway: string;
  /** A clock that all gateways share, in milliseconds since the epoch. */
  now: () => number;
  speed?: UploadSpeed | undefined;
}): Promise<Uploads> {
  /** Uploads under way, with the bytes that were announced. */
  const under = new Set<UnderWay>();
  const mostOf = (key: string): Amounts | undefined => {
    const [tenant = ""] = key.split(".");
    const most = quotasOf(tenant).uploadBytesPerMinute;
    return most === null ? undefined : { requests: Number.POSITIVE_INFINITY, tokens: most, concurrency: Number.POSITIVE_INFINITY };
  };
  const slices = createBudgetSlices({ budgets: await bus.bucket(buckets.budgets), mostOf, log, gateway, tickMs: 1000, now });

  /** Takes bytes of this minute. */
  const take = async (tenant: string, bytes: number): Promise<void> => {
    const most = quotasOf(tenant).uploadBytesPerMinute;
    if (most === null || bytes === 0) return;
    if (bytes > most) {
      const message = `The upload has ${bytes} bytes, and the quota uploadBytesPerMinute of this tenant is ${most}, so it can never be taken. Split it, or have the operator raise the quota.`;
      throw new PermanentError("QUOTA_UPLOAD_RATE", message, { status: 413, param: "file" });
    }
    const taken = await slices.take(uploadBudgetKey(tenant), { ...none(), tokens: bytes }).catch((error: unknown) => {
      // Where NATS cannot write, the upload cannot be stored either, and what is wrong with disk or store is what has to be told.
      if (natsFull(error) === undefined && natsOutage(error) === undefined) throw error;
      log.warn({ err: error, tenant }, "bytes of an upload were not counted");
      return { refused: undefined };
    });
    if (taken.refused === undefined) return;
    const afterMs = minuteMs - (now() % minuteMs);
    throw new RetryLaterError(
      "QUOTA_UPLOAD_RATE",
      afterMs,
      `This tenant may upload ${most} bytes in one minute (quota uploadBytesPerMinute), and too few of them are left. Try again in ${Math.ceil(afterMs / 1000)} s.`,
    );
  };

  return {
    async begin(tenant, contentLength) {
      const own = [...under].filter((each) => each.tenant === tenant);
      // Its place is free at once; its bytes are refused when more of them come.
      if (own.length === 0 && under.size >= mostUploads) {
        const slow = slowestOf(under, speed, performance.now());
        if (slow !== undefined) under.delete(slow);
      }
      if (own.length >= mostUploadsOfTenant || under.size >= (own.length === 0 ? mostUploads : mostUploads - placesForOthers)) {
        const whose = own.length > 0 ? "of this tenant " : "";
        const message = `Too many uploads ${whose}are under way at this gateway. Try again when one has ended.`;
        throw new RetryLaterError("too_many_uploads", 2000, message);
      }
      const upload: UnderWay = {
        tenant,
        bytes: Math.max(0, (contentLength ?? 0) - multipartOverhead),
        began: performance.now(),
        came: 0,
        isWhole: false,
      };
      under.add(upload);
      try {
        const quotas = quotasOf(tenant);
        const others = own.reduce((sum, each) => sum + each.bytes, 0);
        const full = await judgeStorage(bus, { tenant, quotas, bytes: others + upload.bytes });
        if (full !== undefined) throw new PermanentError(full.code, full.message, { status: 403, param: "file" });
        const room =
          quotas.storageBytes === null ? Number.POSITIVE_INFINITY : quotas.storageBytes - sumOf(await bus.stored(tenant)) - others;
        // The last check: what was refused for another reason has not used up the minute.
        if (contentLength !== null) await take(tenant, contentLength);
        return {
          async arrived(more) {
            if (!under.has(upload)) throw tooSlow(speed);
            upload.came += more;
            // A form may have a second file.
            upload.isWhole = false;
            if (upload.came > room) throw storageFull(room);
            if (contentLength === null) await take(tenant, more);
          },
          whole: () => void (upload.isWhole = true),
          [Symbol.dispose]: () => void under.delete(upload),
        };
      } catch (error) {
        under.delete(upload);
        throw error;
      }
    },
    [Symbol.asyncDispose]: () => slices[Symbol.asyncDispose](),
  };
}

interface UnderWay {
  tenant: string;
  /** As announced; 0: nothing was. */
  bytes: number;
  /** `performance.now` when it began. */
  began: number;
  /** Bytes so far. */
  came: number;
  isWhole: boolean;
}

/** The slowest upload that is slower than uploads have to be where places are short; undefined: none is. */
function slowestOf(under: ReadonlySet<UnderWay>, { graceMs, bytesPerSecond }: UploadSpeed, now: number): UnderWay | undefined {
  const speedOf = ({ came, began }: UnderWay): number => came / ((now - began) / 1000);
  return [...under]
    .filter((each) => !each.isWhole && now - each.began > graceMs && speedOf(each) < bytesPerSecond)
    .toSorted((a, b) => speedOf(a) - speedOf(b))[0];
}

const tooSlow = ({ bytesPerSecond }: UploadSpeed): PermanentError =>
  new PermanentError(
    "request_too_slow",
    `The upload came at less than ${bytesPerSecond} bytes per second, and its place was needed for another tenant's; nothing was stored. Send it faster, or in smaller files.`,
    { status: 408, param: "file" },
  );

/** The `Content-Length` of a request; null: it has none. */
export const contentLengthOf = ({ "content-length": given }: { "content-length"?: string | undefined }): number | null =>
  given === undefined ? null : Number(given);

const storageFull = (room: number): PermanentError =>
  new PermanentError(
    "QUOTA_STORAGE",
    `The file has more than the ${room} bytes that are left of this tenant's quota storageBytes. Delete datasets or adapters (\`loraline storage\` shows what takes the room), or have the operator raise it.`,
    { status: 403, param: "file" },
  );
