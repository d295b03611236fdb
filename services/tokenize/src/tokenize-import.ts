/** An imported adapter has no records: only its probes are tokens, with the base and the template they were made for. */
import type { EngineRecord, MethodOf, RunSpec } from "@loraline/contracts";
import { judgeImport, readAdapterHead } from "@loraline/models";
import { digestOf, type Objects, putJson } from "@loraline/objects";
import { PermanentError } from "@loraline/runtime";
import {
  type Base,
  createRecordEncoder,
  neutralQuestions,
  plainPromptsFor,
  promptsFor,
  tokenizeCode,
  type TokenizeResult,
} from "@loraline/tokens";

/**
 * Judges the adapter by its files' headers, before anything is spent. Equal imports give equal bytes.
 * @param run.engines - those the tenant may use.
 * @throws PermanentError ADAPTER_CONFIG_INVALID, ADAPTER_UNREADABLE, OBJECT_MISSING, TEMPLATE_UNSUPPORTED, PAD_TOKEN_MISSING, EOS_TOKEN_MISSING
 */
export async function tokenizeImport(
  { objects }: { objects: Objects },
  {
    tenant,
    base,
    spec,
    adapter,
    engines,
  }: { tenant: string; base: Base; spec: RunSpec; adapter: MethodOf<"import">; engines: readonly EngineRecord[] },
): Promise<TokenizeResult> {
  const [problem] = judgeImport(await readAdapterHead(objects, tenant, adapter), { base: spec.base, ...adapter }, engines);
  if (problem !== undefined) return { kind: "rejected", problem };
  // The base's own template shows prompts as the engine does.
  const encoder = createRecordEncoder(base, {
    ...spec.tokenize,
    ...(adapter.system === undefined ? {} : { system: adapter.system }),
    template: "base",
    too_long: "drop",
  });
  const own = adapter.probes ?? [];
  const probes = await Promise.all([promptsFor(encoder, "own", own), promptsFor(encoder, "neutral", neutralQuestions)]).catch(
    (error: unknown) => {
      if (!(error instanceof PermanentError) || error.code !== "TEMPLATE_MISSING") throw error;
      return Promise.all([plainPromptsFor(encoder, "own", own), plainPromptsFor(encoder, "neutral", neutralQuestions)]);
    },
  );
  const manifest = {
    version: 1 as const,
    cacheKey: digestOf(
      JSON.stringify([
        tokenizeCode,
        "import",
        base.ref,
        base.encoder.digest,
        base.templateDigest,
        own,
        ...(adapter.system === undefined ? [] : [adapter.system]),
      ]),
    ),
    base: base.ref,
    tokenizerDigest: base.encoder.digest,
    templateDigest: base.templateDigest,
    templateFamily: encoder.family,
    template: "base" as const,
    maxLength: spec.tokenize.max_length,
    packed: false,
    seed: spec.training.seed,
    code: tokenizeCode,
    train: [],
    eval: [],
    totals: { sequences: 0, tokens: 0, supervised: 0, evalSequences: 0, evalSupervised: 0, dropped: 0 },
    dropped: [],
    reasons: {},
    noted: [],
    notes: {},
    probes: probes.flat(),
  };
  return { kind: "tokenized", ref: await putJson(objects, tenant, "tokens", manifest), manifest };
}
