/** Removes the bytes of a deleted version from the object store. */
import type { KvBucket } from "@loraline/bus";
import { type AdapterManifest, adapterManifest, type AdapterState, type AdapterVersion, everyKeyOf } from "@loraline/contracts";
import { adapterFiles } from "@loraline/models";
import { getJson, type Objects } from "@loraline/objects";
import { type Log, PermanentError } from "@loraline/runtime";
import { keyOf, nameOf } from "../aliases/adapter-events.ts";

export interface EraseDeps {
  objects: Pick<Objects, "get" | "delete">;
  log: Log;
}

/** How many manifests are read at the same time. */
const readsAtOnce = 16;

/**
 * Removes weights, evidence and manifest, except those that another version of the tenant has too. The manifest is removed last, because
 * it names the weights: if the process dies in between, doing it again finishes the work. Then the version is marked as erased.
 *
 * `adapter_config.json` stays. It has about a kilobyte, and all runs with the same settings share it; one of them may have stored it a
 * moment ago and have no version yet.
 */
export async function eraseVersion(
  { tenant, adapter, base }: AdapterState,
  version: AdapterVersion,
  { objects, log }: EraseDeps,
  adapters: KvBucket<AdapterState>,
): Promise<void> {
  const at = { tenant, id: adapter };
  const read = (ref: AdapterVersion["manifest"]): Promise<AdapterManifest | undefined> =>
    getJson(objects, tenant, ref, adapterManifest).catch((error: unknown) => {
      // The manifest is gone already, or was never valid. (A store that does not answer throws another error.)
      if (error instanceof PermanentError) return undefined;
      throw error;
    });
  const weightsOf = (manifest: AdapterManifest | undefined) => manifest?.files.find(({ path }) => path === adapterFiles.weights)?.blob;

  const others = (await adapters.entries(everyKeyOf(tenant))).flatMap(({ value }) =>
    value.versions
      .filter((other) => other.status !== "deleted" && !(value.adapter === adapter && other.version === version.version))
      .map((other) => ({ ...other, base: value.base })),
  );
  const hasManifest = others.some(({ digest }) => digest === version.digest);
  const weights = hasManifest ? undefined : weightsOf(await read(version.manifest));
  if (weights !== undefined) {
    // Only versions with the same base and rank can have the same weights.
    const alike = others.filter((other) => other.rank === version.rank && other.base === base);
    let hasWeights = false;
    const look = async (): Promise<void> => {
      for (let other = alike.pop(); other !== undefined && !hasWeights; other = alike.pop())
        if (weightsOf(await read(other.manifest))?.digest === weights.digest) hasWeights = true;
    };
    await Promise.all(Array.from({ length: readsAtOnce }, look));
    if (!hasWeights) await objects.delete(tenant, weights);
  }
  if (!others.some(({ evidence }) => evidence.digest === version.evidence.digest)) await objects.delete(tenant, version.evidence);
  if (!hasManifest) await objects.delete(tenant, version.manifest);
  await adapters.change(keyOf(at), (current) => {
    const found = current?.versions.find((known) => known.version === version.version);
    if (current === undefined || found?.status !== "deleted" || found.erased === true) return undefined;
    return { ...current, versions: current.versions.map((known) => (known === found ? { ...known, erased: true } : known)) };
  });
  log.info({ adapter: nameOf(at), version: version.version, digest: version.digest, shared: hasManifest }, "deleted version is erased");
}
