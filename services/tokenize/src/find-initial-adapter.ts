/** What a run's `init_from` names: looked up once, when the run is tokenized, so that a later attempt begins with the same weights. */
import type { Bus } from "@loraline/bus";
import { adapterKey, adapterManifest, type BaseRef, buckets, type InitialAdapter, type Problem, type RunSpec } from "@loraline/contracts";
import { getJson, type Objects } from "@loraline/objects";

/** @returns the version; null: the run names none; or why it cannot begin with it. */
export async function findInitialAdapter(
  { bus, objects }: { bus: Bus; objects: Objects },
  tenant: string,
  { init_from: name, lora }: Pick<RunSpec, "init_from" | "lora">,
  base: BaseRef,
): Promise<InitialAdapter | Problem | null> {
  if (name === undefined) return null;
  const refuse = (code: string, message: string): Problem => ({ code, message: `init_from: ${message}`, param: "init_from" });
  const [, owner = tenant, adapter = "", given] = /^(?:([^/]+)\/)?([^@]+)(?:@(\d+))?$/.exec(name) ?? [];
  // Other tenants' adapters are as unknown as those that do not exist, so that nobody learns their names.
  const state = owner === tenant ? (await (await bus.bucket(buckets.adapters)).get(adapterKey({ tenant, adapter })))?.value : undefined;
  if (state === undefined) return refuse("INIT_FROM_UNKNOWN", `there is no adapter "${name}". \`loraline adapters\` shows yours.`);
  const wanted = given === undefined ? state.alias : Number(given);
  if (wanted === null) return refuse("INIT_FROM_UNKNOWN", `${adapter} has no promoted version. Name one: ${adapter}@N.`);
  const version = state.versions.find((one) => one.version === wanted);
  if (version === undefined || version.status === "refused" || version.status === "deleted") {
    const what = version === undefined ? "does not exist, or is so old that it is not listed any more" : `was ${version.status}`;
    return refuse("INIT_FROM_UNKNOWN", `${adapter}@${wanted} ${what}. \`loraline adapters ${adapter}\` shows those that there are.`);
  }
  const made = await getJson(objects, tenant, version.manifest, adapterManifest);
  if (made.base.digest !== base.digest) {
    return refuse(
      "INIT_FROM_MISMATCH",
      `${adapter}@${wanted} was made for base "${made.base.name}" ${made.base.digest}, and this run has "${base.name}" ${base.digest}.`,
    );
  }
  if (made.rank > lora.r) {
    return refuse(
      "INIT_FROM_MISMATCH",
      `${adapter}@${wanted} has rank ${made.rank}, and this run lora.r ${lora.r}. Set lora.r to ${made.rank} or more.`,
    );
  }
  return { adapter, version: wanted, manifest: version.manifest };
}
