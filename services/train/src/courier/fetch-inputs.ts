/** The trainer's inputs, by digest, in the folder it works in. */
import { mkdir, rm, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  adapterManifest,
  type BlobRef,
  checkpointManifest,
  type FileRef,
  type InitialAdapter,
  type TokenManifest,
  tokenManifest,
  type TokenManifest as Tokens,
  type TrainerSpec,
} from "@loraline/contracts";
import { blobOfPicture, getJson, getToFile, type Objects, readPictureTable } from "@loraline/objects";
import { readBaseRef } from "@loraline/models/base-ref";
import { explainSystemError, keepTrying, type KeepTryingOptions, PermanentError } from "@loraline/runtime";
import type { AttemptSpec } from "../attempt/attempt-spec.ts";
import { trainMethodOf } from "../train-methods.ts";

const downloadsAtOnce = 4;
const patienceMs = 30 * 60_000;

export interface Inputs {
  tokens: TokenManifest;
  /** Step of the checkpoint in `resume/`; null when it begins at the start. */
  resumedFromStep: number | null;
  /** Why the checkpoint it should have resumed from is not there. */
  resumeLost: string | null;
}

/**
 * Writes `shards/train-*.arrow`, `shards/eval-*.arrow`, `pictures/*`, `base`, `resume/`, `import/`, `init/`, `twin-*` and last `spec.json` into `work`.
 * @throws PermanentError BASE_MISSING, BASE_MISMATCH, OBJECT_MISSING, OBJECT_CORRUPT, DISK_FULL …
 */
export async function fetchInputs(deps: {
  spec: AttemptSpec;
  work: string;
  objects: Pick<Objects, "get">;
  basesDir: string;
  patience: KeepTryingOptions;
}): Promise<Inputs> {
  const { spec: attempt, work, objects, basesDir } = deps;
  const patience = { patienceMs, ...deps.patience };
  try {
    await rm(work, { recursive: true, force: true });
    await mkdir(work, { recursive: true });
    const tokens = await keepTrying(
      "fetch token manifest",
      () => getJson(objects, attempt.tenant, attempt.tokens, tokenManifest),
      patience,
    );
    await symlink(await baseDirOf(basesDir, tokens), join(work, "base"));
    const twins = await linkTwins(attempt.twins, basesDir, work);

    const fetch = (blob: BlobRef, path: string) => () =>
      keepTrying(`fetch ${path}`, () => getToFile(objects, attempt.tenant, blob, join(work, path)), patience);
    const shards = (["train", "eval"] as const).flatMap((split) =>
      tokens[split].map(({ blob }, n) => fetch(blob, `shards/${split}-${String(n).padStart(5, "0")}.arrow`)),
    );
    const pictures = await picturesOf(tokens, deps, patience);
    const ofMethod = trainMethodOf(attempt.runSpec);
    const files = ofMethod.files.map(({ blob, path }) => fetch(blob, path));
    const init = attempt.init === null ? [] : await initialFiles(attempt.init, deps, patience);
    await inParallel(downloadsAtOnce, [
      ...shards,
      ...pictures.map((blob) => fetch(blob, `pictures/${blob.digest.slice("sha256:".length)}`)),
      ...files,
      ...init.map(({ path, blob }) => fetch(blob, `init/${path}`)),
    ]);

    let resumedFromStep: number | null = null;
    let resumeLost: string | null = null;
    if (attempt.resume !== null) {
      try {
        const { checkpoint } = attempt.resume;
        const manifest = await keepTrying(
          "fetch checkpoint",
          () => getJson(objects, attempt.tenant, checkpoint, checkpointManifest),
          patience,
        );
        await inParallel(
          downloadsAtOnce,
          manifest.files.map(({ path, blob }) => fetch(blob, `resume/${path}`)),
        );
        resumedFromStep = manifest.step;
      } catch (error) {
        if (!(error instanceof PermanentError) || error.code === "DISK_FULL") throw error;
        // Training again from the start is slower, and better than a run that can never go on.
        resumeLost = error.message;
        await rm(join(work, "resume"), { recursive: true, force: true });
      }
    }

    const spec: TrainerSpec = {
      version: 1,
      run_id: attempt.runId,
      attempt: attempt.attempt,
      base: tokens.base,
      lora: attempt.runSpec.lora,
      training: attempt.runSpec.training,
      method: ofMethod.trainer,
      quantization: attempt.runSpec.quantization,
      init: attempt.init && { name: `${attempt.init.adapter}@${attempt.init.version}`, digest: attempt.init.manifest.digest },
      twins,
      probes: tokens.probes,
      device: attempt.machine.device,
    };
    await writeFile(join(work, "spec.json"), JSON.stringify(spec, null, 2));
    return { tokens, resumedFromStep, resumeLost };
  } catch (error) {
    throw explainSystemError(error, `fetching the inputs of ${attempt.name} to ${work}`);
  }
}

/** The pictures of the rows and probes. */
const picturesOf = async (
  { pictures }: TokenManifest,
  { spec, objects }: { spec: AttemptSpec; objects: Pick<Objects, "get"> },
  patience: KeepTryingOptions,
): Promise<BlobRef[]> =>
  pictures === undefined
    ? []
    : keepTrying(
        "fetch the table of pictures",
        async () => (await Array.fromAsync(readPictureTable(objects, spec.tenant, pictures.table))).map(blobOfPicture),
        patience,
      );

/** @throws PermanentError INIT_FROM_UNKNOWN: the version was deleted since the run was tokenized. */
async function initialFiles(
  { adapter, version, manifest }: InitialAdapter,
  { spec, objects }: { spec: AttemptSpec; objects: Pick<Objects, "get"> },
  patience: KeepTryingOptions,
): Promise<FileRef[]> {
  try {
    const { files } = await keepTrying("fetch adapter", () => getJson(objects, spec.tenant, manifest, adapterManifest), patience);
    return files;
  } catch (error) {
    if (!(error instanceof PermanentError) || error.code !== "OBJECT_MISSING") throw error;
    const message = `init_from: ${adapter}@${version} was deleted since the run was requested. Name another version.`;
    throw new PermanentError("INIT_FROM_UNKNOWN", message, { param: "init_from", cause: error });
  }
}

/** Links those quantised bases that are here as they were when the run was tokenized. On others the adapter is proven less strictly. */
async function linkTwins(twins: AttemptSpec["twins"], basesDir: string, work: string): Promise<TrainerSpec["twins"]> {
  const linked: TrainerSpec["twins"] = [];
  for (const [n, { name, digest }] of twins.entries()) {
    const dir = join(basesDir, name);
    const here = await readBaseRef(dir).catch(() => undefined);
    if (here?.digest !== digest) continue;
    const path = `twin-${n}`;
    await symlink(dir, join(work, path));
    linked.push({ path, digest });
  }
  return linked;
}

/** The base as it was tokenized for, and no other: another revision would give another adapter. */
async function baseDirOf(basesDir: string, { base }: Pick<Tokens, "base">): Promise<string> {
  const dir = join(basesDir, base.name);
  const here = await readBaseRef(dir);
  if (here.digest !== base.digest) {
    throw new PermanentError(
      "BASE_MISMATCH",
      `the run was tokenized for base "${base.name}" ${base.digest}, but ${dir} holds ${here.digest}. Request the run again.`,
      { param: "base" },
    );
  }
  return dir;
}

async function inParallel(limit: number, tasks: readonly (() => Promise<void>)[]): Promise<void> {
  const waiting = tasks.values();
  await Promise.all(
    Array.from({ length: Math.min(limit, tasks.length) }, async () => {
      for (const task of waiting) await task();
    }),
  );
}
