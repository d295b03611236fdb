/** Ids in OpenAI's form: `file-<dataset>`, `ftjob-<run>`, `ft:<base>:<tenant>:<adapter>:<version>`, `ft:…:<run>:ckpt-step-<step>`. */
import { ulid } from "@loraline/contracts";

const suffixAfter =
  (prefix: string) =>
  (id: string): string | undefined => {
    const rest = id.startsWith(prefix) ? id.slice(prefix.length) : undefined;
    return rest !== undefined && ulid.safeParse(rest).success ? rest : undefined;
  };

export const fileIdOf = (datasetId: string): string => `file-${datasetId}`;
/** The dataset of a file id; undefined if it is not one of ours. */
export const datasetIdOf = suffixAfter("file-");

/** The file with a run's metrics. */
export const resultFileIdOf = (runId: string): string => `file-result-${runId}`;
/** The run of a result file's id; undefined if it is not one of ours. */
export const runIdOfResult = suffixAfter("file-result-");

export const uploadIdOf = (id: string): string => `upload_${id}`;
/** The ULID of an upload, and of its dataset; undefined if it is not one of ours. */
export const ulidOfUpload = suffixAfter("upload_");
export const partIdOf = (id: string): string => `part_${id}`;

export const jobIdOf = (runId: string): string => `ftjob-${runId}`;
/** The run of a job id; undefined if it is not one of ours. */
export const runIdOf = suffixAfter("ftjob-");

interface VersionName {
  base: string;
  tenant: string;
  adapter: string;
  version: number;
}

export const fineTunedModel = ({ base, tenant, adapter, version }: VersionName): string => `ft:${base}:${tenant}:${adapter}:${version}`;

export function parseFineTunedModel(model: string): VersionName | undefined {
  const [, base, tenant, adapter, version] = /^ft:(.+):([^:]+):([^:]+):([1-9]\d{0,8})$/.exec(model) ?? [];
  if (base === undefined || tenant === undefined || adapter === undefined) return undefined;
  return { base, tenant, adapter, version: Number(version) };
}

export interface CheckpointName {
  base: string;
  tenant: string;
  adapter: string;
  checkpoint: { runId: string; step: number };
}

export const checkpointModel = ({ base, tenant, adapter, checkpoint: { runId, step } }: CheckpointName): string =>
  `ft:${base}:${tenant}:${adapter}:${runId}:ckpt-step-${step}`;

export function parseCheckpointModel(model: string): CheckpointName | undefined {
  const [, base, tenant, adapter, runId, step] = /^ft:(.+):([^:]+):([^:]+):([^:]+):ckpt-step-(0|[1-9]\d{0,8})$/.exec(model) ?? [];
  if (base === undefined || tenant === undefined || adapter === undefined) return undefined;
  return ulid.safeParse(runId).success ? { base, tenant, adapter, checkpoint: { runId: runId ?? "", step: Number(step) } } : undefined;
}

/** Removes the caller's own tenant from an adapter's name: for acme's keys `acme/pirate` and `pirate` are the same. Another tenant's name is kept, and so finds nothing. */
export const ownAdapterName = (tenant: string, name: string): string =>
  name.startsWith(`${tenant}/`) ? name.slice(tenant.length + 1) : name;
