/** `dataset.import-requested` → `dataset.received`, which continues as for an upload; or `dataset.rejected`. */
import { type Bus, type HandlerContext, judgeStorage, type Received, sumOf, tellProgress, type TenantQuotas } from "@loraline/bus";
import {
  type BlobRef,
  datasetDeleted,
  datasetProgress,
  type datasetImportRequested,
  datasetReceived,
  datasetRejected,
  type ImportSource,
} from "@loraline/contracts";
import type { Objects } from "@loraline/objects";
import {
  countBytes,
  createGuardedFetch,
  type GuardedFetch,
  PermanentError,
  RetryLaterError,
  type Telemetry,
  UnavailableError,
} from "@loraline/runtime";
import { hubFileUrl, hubHeaders, listHubFiles } from "@loraline/models";
import { decideHubFiles } from "./decide-hub-files.ts";
import type { ImportSlots } from "./import-slots.ts";
import { takeImportSlot } from "./take-import-slot.ts";

export interface ImportSettings {
  /** `host:port` of hosts that may be reached although their addresses are not public. */
  allow: readonly string[];
  hubEndpoint: string;
  /** Token for the hub. Every tenant can import what its owner may read. */
  hubToken?: string | undefined;
  /** Most bytes of an import, all its files together. */
  maxBytes: number;
  /** Time limit for one file, in milliseconds. */
  timeoutMs: number;
  /** Imports of all tenants that are under way at once in one process, with uploads whose pictures are fetched. */
  atOnce: number;
}

interface OnImportRequestedDeps {
  bus: Bus;
  objects: Objects;
  telemetry: Telemetry;
  fetch: GuardedFetch;
  slots: ImportSlots;
  quotas: TenantQuotas;
  settings: ImportSettings;
  tellEveryMs?: number | undefined;
}

/** Tries after which an import gives up on a server that does not answer: about a minute with the delays. */
const mostTries = 5;

/** Files to fetch for a source. */
interface Wanted {
  url: string;
  filename: string;
  sha256: string | undefined;
  /** In bytes, where it is known before. */
  size: number | undefined;
  headers: Record<string, string>;
}

export const createImportFetch = ({ allow }: ImportSettings): GuardedFetch => createGuardedFetch({ allow });

/** Each step may be repeated without harm: a blob is named by its content, and the events always have the same id. */
export function onImportRequested({ bus, objects, telemetry, fetch, slots, quotas, settings, tellEveryMs }: OnImportRequestedDeps) {
  return async (received: Received<typeof datasetImportRequested>, { log, signal, tries }: HandlerContext): Promise<void> => {
    const { at, data } = received;
    const ended = async (): Promise<boolean> =>
      (await Promise.all([bus.last(datasetReceived, at), bus.last(datasetRejected, at), bus.last(datasetDeleted, at)])).some(
        (event) => event !== undefined,
      );
    if (await ended()) return;
    using slot = await takeImportSlot({ slots, bus, log, signal }, at);
    if (slot.hasWaited && (await ended())) return;
    const attributes = { "loraline.source": "url" in data.source ? (URL.parse(data.source.url)?.host ?? "no URL") : data.source.hub };
    try {
      const files = await telemetry.span("fetch dataset", { attributes }, async (span) => {
        const fetched = await fetchAll(await locate(data.source), at.tenant);
        span.setAttribute(
          "loraline.bytes",
          fetched.reduce((sum, { blob }) => sum + blob.size, 0),
        );
        return fetched;
      });
      const [first, ...parts] = files;
      if (first === undefined || (await ended())) return;
      log.info({ files: files.length, bytes: files.reduce((sum, { blob }) => sum + blob.size, 0) }, "dataset fetched");
      await bus.publish(datasetReceived, at, { ...first, parts: parts.length === 0 ? null : parts, mapping: data.mapping, by: data.by });
    } catch (error) {
      if (signal.aborted) throw error;
      // Here it is our own object store or NATS that is away, not the source.
      if (error instanceof UnavailableError) throw error;
      const gaveUp = error instanceof RetryLaterError && tries >= mostTries;
      if (!(gaveUp || (error instanceof PermanentError && saysWhy(error)))) throw error;
      log.info({ err: error }, "import refused");
      const tried = gaveUp ? ` Tried ${tries} times; import it again later.` : "";
      const param = error instanceof PermanentError ? error.param : null;
      await bus.publish(datasetRejected, at, { code: error.code, message: `${error.message}${tried}`, param, report: null, rejections: 0 });
    }

    async function locate(source: ImportSource): Promise<Wanted[]> {
      if ("url" in source) return [{ url: source.url, filename: fileOf(source.url), sha256: undefined, size: undefined, headers: {} }];
      const repository = {
        endpoint: settings.hubEndpoint,
        kind: "datasets",
        name: source.hub,
        revision: source.revision ?? "main",
        token: settings.hubToken,
      } as const;
      const { commit, files } = await listHubFiles(fetch, repository, signal);
      const chosen = decideHubFiles(files, source);
      const bytes = chosen.reduce((sum, { size }) => sum + size, 0);
      if (bytes > settings.maxBytes) {
        throw new PermanentError(
          "FETCH_TOO_LARGE",
          `"${source.hub}" has ${bytes} bytes to fetch; the limit is ${settings.maxBytes}. Name one file with \`file\`.`,
        );
      }
      return chosen.map(({ path, sha256, size }) => ({
        url: hubFileUrl({ ...repository, revision: commit }, path),
        filename: fileOf(path),
        sha256,
        size,
        headers: hubHeaders(repository),
      }));
    }

    async function fetchAll(wanted: readonly Wanted[], tenant: string): Promise<{ blob: BlobRef; filename: string }[]> {
      const fetched: { blob: BlobRef; filename: string }[] = [];
      const full = await judgeStorage(bus, { tenant, quotas: quotas.of(tenant), bytes: 0 });
      if (full !== undefined) throw new PermanentError(full.code, full.message);
      const { storageBytes } = quotas.of(tenant);
      const room = storageBytes === null ? Number.POSITIVE_INFINITY : storageBytes - sumOf(await bus.stored(tenant));
      const noRoom = new PermanentError(
        "QUOTA_STORAGE",
        `what is to be fetched is larger than the ${room} bytes that are left of this tenant's quota storageBytes. Delete datasets or adapters, or have the operator raise it.`,
      );
      const ofQuota = (error: unknown): unknown =>
        room < settings.maxBytes && error instanceof PermanentError && error.code === "FETCH_TOO_LARGE" ? noRoom : error;
      let left = Math.min(settings.maxBytes, room);
      let done = 0;
      let onFetched: ((bytes: number) => void) | undefined;
      /** The total is known from the hub's list, or of a single file from its server. */
      const tellFrom = (size: number | undefined): ((bytes: number) => void) =>
        tellProgress({
          total: size ?? null,
          tell: (work, key) => bus.publish(datasetProgress, at, { stage: "fetch", ...work }, { key }),
          everyMs: tellEveryMs,
        });
      const listed = wanted.reduce<number | undefined>(
        (sum, { size }) => (sum === undefined || size === undefined ? undefined : sum + size),
        0,
      );
      for (const { url, filename, sha256, headers } of wanted) {
        if (left <= 0) throw noRoom;
        const digest = sha256 === undefined ? {} : { digest: `sha256:${sha256}` as const };
        const blob = await fetch
          .get(url, { maxBytes: left, timeoutMs: settings.timeoutMs, signal, headers })
          .then(({ body, size }) => {
            onFetched ??= tellFrom(listed ?? (wanted.length === 1 ? size : undefined));
            const tell = onFetched;
            return objects.put(
              tenant,
              "raw",
              countBytes(body, (bytes) => tell((done += bytes))),
              digest,
            );
          })
          .catch((error: unknown) => {
            throw ofQuota(error);
          });
        left -= blob.size;
        fetched.push({ blob, filename });
      }
      return fetched;
    }
  };
}

/** Codes about the source, which reject the dataset. Other codes are about the store, and the message becomes a failed message. */
const saysWhy = ({ code }: PermanentError): boolean =>
  /^(?:URL_|HUB_|FETCH_|ADDRESS_REFUSED$|QUOTA_STORAGE$|TOO_MANY_REDIRECTS$|DIGEST_MISMATCH$)/.test(code);

/** @returns the last part of a path or URL, as a file's name. */
function fileOf(location: string): string {
  const path = URL.parse(location)?.pathname ?? location;
  const last = path.split("/").findLast((part) => part !== "") ?? "";
  let name = last;
  try {
    name = decodeURIComponent(last);
  } catch {
    // A part that cannot be decoded stays as it is.
  }
  return (name.replaceAll(/[/\\\p{Cc}]/gu, "_").slice(-512) || "import").toWellFormed();
}
