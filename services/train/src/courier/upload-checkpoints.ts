/** Checkpoints on their way to the object store, in order, while training goes on. */
import { access, readdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import {
  type BlobRef,
  type CheckpointManifest,
  type FileRef,
  type PublishedCheckpoint,
  runCheckpointed,
  type TokenManifest,
  writtenCheckpoint,
} from "@loraline/contracts";
import { type Objects, putJson } from "@loraline/objects";
import { keepTrying, type KeepTryingOptions, type Log } from "@loraline/runtime";
import type { AttemptSpec } from "../attempt/attempt-spec.ts";
import { readTrainerJson, withTrainerFile } from "../attempt/trainer-files.ts";
import type { Outbox } from "./outbox.ts";
import { putAdapter } from "./put-adapter.ts";

export interface CheckpointUploads {
  /** Queues a complete checkpoint; nothing happens when it was queued before. */
  add(this: void, step: number, trainLoss: number | null): void;
  /** Queues every complete checkpoint that the folder holds: the trainer may have died before it wrote the line about it. */
  addLeftovers(): Promise<void>;
  /** Resolves when all that were queued are stored, or given up on. */
  done(): Promise<void>;
  /** Step of the newest one stored. */
  newestStep(): number;
}

interface CheckpointUploadsDeps {
  /** The trainer's folder. */
  work: string;
  spec: AttemptSpec;
  tokens: Pick<TokenManifest, "base" | "templateDigest">;
  /** Step this attempt began at: its checkpoint is stored already. */
  fromStep: number;
  objects: Pick<Objects, "put">;
  outbox: Outbox;
  log: Log;
  onWait?: KeepTryingOptions["onWait"];
}

const folderOf = (step: number): string => `step-${String(step).padStart(8, "0")}`;
const patienceMs = 30 * 60_000;

export function createCheckpointUploads(deps: CheckpointUploadsDeps): CheckpointUploads {
  const { work, spec, tokens, fromStep, objects, outbox, log, onWait } = deps;
  const { tenant, attempt } = spec;
  const dir = join(work, "checkpoints");
  const patience: KeepTryingOptions = { log, patienceMs, ...(onWait === undefined ? {} : { onWait }) };
  // Of the attempt: the trainer may exchange its own folder.
  const root = dirname(work);
  const queued = new Set<number>();
  let newest = fromStep;
  let last: Promise<void> = Promise.resolve();

  const upload = async (step: number, trainLoss: number | null): Promise<void> => {
    const folder = join(dir, folderOf(step));
    const checkpoint = await keepTrying(`upload checkpoint ${step}`, () => putFolder(objects, tenant, { folder, root }, step), patience);
    const published = await storePublished(step).catch((error: unknown) => {
      log.warn({ err: error, step }, "the checkpoint's adapter is not stored: nobody can ask it");
      return undefined;
    });
    await outbox.send(runCheckpointed, { attempt, step, checkpoint, trainLoss, published }, `attempt-${attempt}/step-${step}`);
    newest = Math.max(newest, step);
    log.info({ step, checkpoint: checkpoint.digest }, "checkpoint stored");
  };

  /** @returns undefined: the trainer wrote none. */
  const storePublished = async (step: number): Promise<PublishedCheckpoint | undefined> => {
    const folder = join("published", folderOf(step));
    const result = await readTrainerJson(join(work, `${folder}.json`), root, writtenCheckpoint);
    if (result === undefined) return undefined;
    const { adapter: written } = result;
    return { ...(await putAdapter({ spec, objects, work, tokens, folder, written, result, patience })), rank: written.rank };
  };

  const uploads: CheckpointUploads = {
    add(step, trainLoss) {
      if (step <= fromStep || queued.has(step)) return;
      queued.add(step);
      last = last
        .then(() => upload(step, trainLoss))
        // The trainer may have removed it in favour of a newer one, and the run is worth more than one of its checkpoints.
        .catch((error: unknown) => log.warn({ err: error, step }, "checkpoint not stored"));
    },
    async addLeftovers() {
      const names = await readdir(dir).catch(() => []);
      for (const name of names.toSorted((a, b) => a.localeCompare(b))) {
        const step = /^step-(\d{8})$/.exec(name)?.[1];
        if (step === undefined) continue;
        const complete = await access(join(dir, name, "checkpoint.json")).then(
          () => true,
          () => false,
        );
        if (complete) uploads.add(Number(step), null);
      }
    },
    done: () => last,
    newestStep: () => newest,
  };
  return uploads;
}

/** Files, then the manifest: its existence means that the checkpoint is complete. */
async function putFolder(
  objects: Pick<Objects, "put">,
  tenant: string,
  { folder, root }: { folder: string; root: string },
  step: number,
): Promise<BlobRef> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  const paths = entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name).slice(folder.length + 1));
  const files: FileRef[] = [];
  for (const path of paths.toSorted((a, b) => (a < b ? -1 : 1))) {
    files.push({ path, blob: await withTrainerFile(join(folder, path), root, (file) => objects.put(tenant, "checkpoint-file", { file })) });
  }
  return putJson(objects, tenant, "checkpoint", { version: 1, step, files } satisfies CheckpointManifest);
}
