/** What manifests refer to. A manifest never changes, so each is read once. */
import { adapterManifest, type BlobRef, checkpointManifest, datasetManifest, datasetReport, tokenManifest } from "@loraline/contracts";
import { blobOfPicture, getJson, type Objects, readPictureTable } from "@loraline/objects";
import { PermanentError } from "@loraline/runtime";
import { nameOf } from "./decide-garbage.ts";

/** Manifests whose references are remembered; one of a large dataset refers to a thousand blobs. */
const mostRemembered = 20_000;
const readsAtOnce = 16;

export interface ManifestReferences {
  /** `<kind>/<digest>` of the blobs, and of all that they refer to, directly and indirectly. Manifests that are missing refer to nothing. */
  expand(tenant: string, whole: readonly BlobRef[]): Promise<Set<string>>;
}

export function createManifestReferences({ objects }: { objects: Pick<Objects, "get"> }): ManifestReferences {
  const known = new Map<string, readonly BlobRef[]>();

  const read = async (tenant: string, ref: BlobRef): Promise<readonly BlobRef[]> => {
    switch (ref.kind) {
      case "dataset": {
        const { source, chunks, report, pictures } = await getJson(objects, tenant, ref, datasetManifest);
        return [source, report, ...chunks.map(({ blob }) => blob), ...(pictures === undefined ? [] : [pictures.table])];
      }
      case "report": {
        const { allRejections } = await getJson(objects, tenant, ref, datasetReport);
        return allRejections === null ? [] : [allRejections];
      }
      case "tokens": {
        const { train, eval: held, pictures } = await getJson(objects, tenant, ref, tokenManifest);
        return [...[...train, ...held].map(({ blob }) => blob), ...(pictures === undefined ? [] : [pictures.table])];
      }
      case "pictures":
        return (await Array.fromAsync(readPictureTable(objects, tenant, ref))).map(blobOfPicture);
      case "checkpoint":
        return (await getJson(objects, tenant, ref, checkpointManifest)).files.map(({ blob }) => blob);
      case "adapter":
        return (await getJson(objects, tenant, ref, adapterManifest)).files.map(({ blob }) => blob);
      default:
        return [];
    }
  };
  const referencesOf = async (tenant: string, ref: BlobRef): Promise<readonly BlobRef[]> => {
    const name = `${tenant}/${nameOf(ref)}`;
    const found =
      known.get(name) ??
      (await read(tenant, ref).catch((error: unknown) => {
        // A manifest that is gone or broken leads nowhere. One that only this version cannot read must not cost what it may refer to.
        if (error instanceof PermanentError && /^OBJECT_(?:MISSING|CORRUPT)$/.test(error.code)) return undefined;
        throw error;
      }));
    if (found === undefined) return [];
    known.delete(name);
    known.set(name, found);
    if (known.size > mostRemembered) for (const oldest of known.keys().take(1)) known.delete(oldest);
    return found;
  };

  return {
    async expand(tenant, whole) {
      const needed = new Set<string>();
      const waiting = [...whole];
      const next = async (): Promise<void> => {
        for (let ref = waiting.pop(); ref !== undefined; ref = waiting.pop()) {
          if (needed.has(nameOf(ref))) continue;
          needed.add(nameOf(ref));
          waiting.push(...(await referencesOf(tenant, ref)));
        }
      };
      // A reader may end while another one is about to add more, so it is looked again.
      while (waiting.length > 0) await Promise.all(Array.from({ length: readsAtOnce }, next));
      return needed;
    },
  };
}
