/** Datasets as they come in, and as OpenAI's file objects show them. */
import { type BlobRef, type DatasetMapping, datasetReceived, type DatasetState, type FileObject } from "@loraline/contracts";
import type { Caller } from "../access/auth.ts";
import type { GatewayContext } from "../context.ts";
import { fileIdOf } from "../openai-ids.ts";
import { requestSpan } from "../tracing.ts";
import type { SpooledUpload } from "./spool-upload.ts";

export const purpose = "fine-tune";
/** How long an answer waits for the projector, so that lists already show the dataset. The answer is right also without it. */
export const foldWithinMs = 1000;

interface Received {
  datasetId: string;
  spooled: Pick<SpooledUpload, "file" | "digest" | "size">;
  filename: string;
  /** null: by detection. */
  mapping: DatasetMapping | null;
}

/** Stores the file of a dataset. Done again it does nothing, but that the bytes are young again. */
export const storeFile = (
  { objects }: Pick<GatewayContext, "objects">,
  tenant: string,
  { file, digest }: Received["spooled"],
): Promise<BlobRef> => objects.put(tenant, "raw", { file }, { digest });

/** Tells of a dataset whose bytes are stored. @returns it as it is then. */
export async function announceDataset(
  { bus, state }: Pick<GatewayContext, "bus" | "state">,
  { tenant, by }: Caller,
  { datasetId, blob, filename, mapping }: Omit<Received, "spooled"> & { blob: BlobRef },
): Promise<void> {
  requestSpan()?.setAttribute("loraline.dataset.id", datasetId);
  await bus.publish(datasetReceived, { tenant, id: datasetId }, { blob: { ...blob, kind: "raw" }, filename, mapping, by });
  await state.datasetFolded(tenant, datasetId, () => true, foldWithinMs);
}

export async function readBack({ state }: Pick<GatewayContext, "state">, tenant: string, datasetId: string): Promise<DatasetState> {
  const dataset = await state.dataset(tenant, datasetId);
  if (dataset === undefined) throw new Error(`dataset ${datasetId} was stored, but cannot be read back`);
  return dataset;
}

/** Stores and announces a file. */
export async function receiveDataset(
  context: Pick<GatewayContext, "bus" | "objects" | "state">,
  caller: Caller,
  { spooled, ...dataset }: Received,
): Promise<DatasetState> {
  const blob = await storeFile(context, caller.tenant, spooled);
  await announceDataset(context, caller, { ...dataset, blob });
  // If another dataset with these bytes was deleted and this gateway slept in between, they may be gone. Now that they are told of, they stay.
  if ((await context.objects.head(caller.tenant, blob)) === undefined) await storeFile(context, caller.tenant, spooled);
  return readBack(context, caller.tenant, dataset.datasetId);
}

const statusOf = { importing: "uploaded", received: "uploaded", ingested: "processed", rejected: "error", deleted: "error" } as const;

const blobsOf = ({ blob, parts }: DatasetState): BlobRef[] => (blob === null ? [] : [blob, ...parts.map((part) => part.blob)]);

export function fileObjectOf(dataset: DatasetState): FileObject {
  return {
    id: fileIdOf(dataset.datasetId),
    object: "file",
    bytes: blobsOf(dataset).reduce((sum, { size }) => sum + size, 0),
    created_at: Math.floor(Date.parse(dataset.receivedAt) / 1000),
    filename: dataset.filename,
    purpose,
    status: statusOf[dataset.status],
    status_details:
      dataset.error?.message ??
      (dataset.waiting !== null ? `waiting: ${dataset.waiting.message}` : null) ??
      (dataset.status === "importing" ? "The file is being fetched." : null),
    loraline: {
      sha256: dataset.blob?.digest.slice("sha256:".length) ?? null,
      records: dataset.records,
      rejections: dataset.rejections,
      error: dataset.error,
    },
  };
}
