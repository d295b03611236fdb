/** What is stored about a finished training: the adapter, free of everything that differs between equal trainings, and its evidence. */
import type {
  AdapterManifest,
  BlobRef,
  Digest,
  Evidence,
  FileRef,
  InitialAdapter,
  TokenManifest,
  TrainerResult,
} from "@loraline/contracts";

type TrainedAdapter = NonNullable<TrainerResult["adapter"]>;

const byCodePoint = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);

/** Equal adapters give equal JSON, hence equal digests: keys in fixed order, lists sorted. */
export function adapterManifestFor(
  tokens: Pick<TokenManifest, "base">,
  adapter: TrainedAdapter,
  files: readonly FileRef[],
): AdapterManifest {
  const { name, revision, digest } = tokens.base;
  return {
    version: 1,
    base: { name, revision, digest },
    rank: adapter.rank,
    targetModules: adapter.target_modules.toSorted(byCodePoint),
    parameters: adapter.parameters,
    files: files
      .toSorted((a, b) => byCodePoint(a.path, b.path))
      .map(({ path, blob }) => ({ path, blob: { kind: blob.kind, digest: blob.digest, size: blob.size } })),
  };
}

export function evidenceFor(input: {
  runId: string;
  adapter: Digest;
  tokensRef: BlobRef;
  tokens: Pick<TokenManifest, "templateDigest" | "base">;
  init: InitialAdapter | null;
  /** Of a checkpoint only what was measured of it. */
  result: Pick<TrainerResult, "probes" | "environment"> &
    Partial<Pick<TrainerResult, "evaluation" | "twins" | "loss_history" | "eval_history">>;
}): Evidence {
  const { runId, adapter, tokensRef, tokens, init, result } = input;
  return {
    version: 1,
    runId,
    adapter,
    tokens: tokensRef,
    init,
    templateDigest: tokens.templateDigest,
    evaluation: result.evaluation ?? null,
    base: tokens.base.digest,
    probes: result.probes,
    twins: result.twins,
    environment: result.environment,
    lossHistory: result.loss_history ?? [],
    evalHistory: result.eval_history,
  };
}
