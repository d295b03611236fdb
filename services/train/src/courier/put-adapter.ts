/** An adapter that the trainer wrote, put into the object store: files, manifest, evidence. */
import { dirname, join } from "node:path";
import type { BlobRef, FileRef, TokenManifest, TrainerResult } from "@loraline/contracts";
import { type Objects, putJson } from "@loraline/objects";
import { keepTrying, type KeepTryingOptions } from "@loraline/runtime";
import type { AttemptSpec } from "../attempt/attempt-spec.ts";
import { withTrainerFile } from "../attempt/trainer-files.ts";
import { adapterManifestFor, evidenceFor } from "./adapter-manifest.ts";

/**
 * Each exists only when all before it do.
 * @param options.folder - of the adapter, in `work`.
 */
export async function putAdapter({
  spec,
  objects,
  work,
  tokens,
  folder,
  written,
  result,
  patience,
}: {
  spec: AttemptSpec;
  /** The trainer's folder. */
  work: string;
  objects: Pick<Objects, "put">;
  tokens: Pick<TokenManifest, "base" | "templateDigest">;
  folder: string;
  written: NonNullable<TrainerResult["adapter"]>;
  result: Parameters<typeof evidenceFor>[0]["result"];
  patience: KeepTryingOptions;
}): Promise<{ adapter: BlobRef; evidence: BlobRef }> {
  const files = await Promise.all(
    written.files.map(async ({ path, sha256 }): Promise<FileRef> => {
      const put = () =>
        withTrainerFile(join(work, folder, path), dirname(work), (file) =>
          objects.put(spec.tenant, "adapter-file", { file }, { digest: `sha256:${sha256}` }),
        );
      return { path, blob: await keepTrying(`store ${path}`, put, patience) };
    }),
  );
  const manifest = adapterManifestFor(tokens, written, files);
  const adapter = await keepTrying("store adapter manifest", () => putJson(objects, spec.tenant, "adapter", manifest), patience);
  const proof = evidenceFor({ runId: spec.runId, adapter: adapter.digest, tokensRef: spec.tokens, tokens, init: spec.init, result });
  return { adapter, evidence: await keepTrying("store evidence", () => putJson(objects, spec.tenant, "evidence", proof), patience) };
}
