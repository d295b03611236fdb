/** The three steps an agent takes about one adapter on its engine: load, prove, unload. What is to be done is decided elsewhere. */
import { type EngineRecord, type Evidence, evidence as evidenceShape, type Proof, type Problem } from "@loraline/contracts";
import { judgeAdapter } from "@loraline/models";
import { getJson, type Objects } from "@loraline/objects";
import { PermanentError, problemOf, RetryLaterError, type Telemetry, UnavailableError } from "@loraline/runtime";
import type { AdapterFiles } from "./adapter-files.ts";
import type { Fault, WantedAdapter } from "./decide-adapters.ts";
import type { EngineObserver } from "../engine-observer.ts";
import { type ComputedIn, decideProof, type Measured, type ProofDecision } from "../../decide-proof.ts";
import { type BaseAnswers, chooseProbes, createBaseAnswers, measureProbes } from "../../measure-probes.ts";
import { EngineRefusedError, EngineUnknownError, type LoadOutcome, type LoraEngine } from "../../engines/lora-engine.ts";

/** What loading and proving need of an engine's record. */
export type EngineFacts = Pick<EngineRecord, "maxLoraRank" | "computeType"> &
  Partial<Pick<EngineRecord, "base" | "derivedFrom" | "rounded">>;

export interface AdapterSteps {
  /** Fetches, judges and loads. Throws what `faultOf` understands. */
  load(adapter: WantedAdapter): Promise<void>;
  /** Asks the probes. `spoiled`: the files on disk are not what was published, so it must be loaded anew. */
  prove(
    adapter: WantedAdapter,
  ): Promise<{ kind: "proven" | "refused"; proof: Proof; problem: Problem | null; incarnation: string } | { kind: "spoiled" }>;
  /** Returns what the engine said; whether it still lists the name is read afterwards. */
  unload(loraName: string): Promise<LoadOutcome>;
}

export function createAdapterSteps({
  client,
  engine,
  files,
  objects,
  telemetry,
  base,
  limits,
}: {
  client: LoraEngine;
  engine: EngineObserver;
  files: AdapterFiles;
  objects: Pick<Objects, "get">;
  telemetry: Telemetry;
  base: string;
  /** What the engine was started for. */
  limits(): Promise<EngineFacts>;
}): AdapterSteps {
  const evidenceCache = new Map<string, Evidence>();
  const evidenceOf = async ({ tenant, evidence }: WantedAdapter): Promise<Evidence> => {
    const known = evidenceCache.get(evidence.digest);
    if (known !== undefined) return known;
    const read = await getJson(objects, tenant, evidence, evidenceShape);
    if (evidenceCache.size >= 256) evidenceCache.clear();
    evidenceCache.set(evidence.digest, read);
    return read;
  };
  let baseAnswers: { incarnation: string; answers: BaseAnswers } | undefined;
  const baseAnswersOf = (incarnation: string): BaseAnswers => {
    if (baseAnswers?.incarnation !== incarnation) baseAnswers = { incarnation, answers: createBaseAnswers() };
    return baseAnswers.answers;
  };

  return {
    load: (adapter) =>
      telemetry.span("load", { parent: adapter.trace ?? undefined, attributes: attributesOf(adapter) }, async () => {
        const path = await files.ensure(adapter);
        const { maxLoraRank, derivedFrom } = await limits();
        const served = { name: base, derivedFrom: derivedFrom?.name, maxLoraRank, modules: engine.baseModules };
        const [problem] = judgeAdapter(await files.read(adapter), served);
        if (problem !== undefined) throw new PermanentError(problem.code, problem.message, { param: problem.param });
        const outcome = await client.load(adapter.loraName, path);
        refuseUnlessDone(outcome, adapter);
        // The list is not read again: the proof asks for the adapter by name, and fails if it is not there.
        engine.stepped(adapter.loraName, path);
      }),

    prove: (adapter) =>
      telemetry.span("proof", { parent: adapter.trace ?? undefined, attributes: attributesOf(adapter) }, async (span) => {
        const { loraName } = adapter;
        const before = engine.incarnation;
        // What was verified for its load, and was not written to since, is not read again.
        if (!files.isUnchanged(adapter) && !(await files.verify(adapter))) return { kind: "spoiled" };
        const { environment, base: recordedOn, ...evidence } = await evidenceOf(adapter);
        const facts = await limits();
        const onTwin = evidence.twins?.find(({ base: digest }) => digest === facts.base?.digest);
        const { probes } = onTwin ?? evidence;
        const isOfAnother = onTwin === undefined && Boolean(recordedOn) && facts.base !== undefined && recordedOn !== facts.base.digest;
        const computed: ComputedIn = {
          recorded: environment?.compute_type,
          replica: facts.computeType,
          rounded: facts.rounded === true || isOfAnother,
        };
        const answers = baseAnswersOf(before);
        let measured: Measured[] = [];
        const measure = async (known?: BaseAnswers): Promise<ProofDecision> => {
          measured = await measureProbes(client, { base, loraName, probes: chooseProbes(probes), known });
          return decideProof(measured, new Date().toISOString(), computed);
        };
        let decision = await measure(answers);
        // A refusal is for good, so it takes two measurements, of everything: other requests in the same batch must not decide it.
        if (decision.kind === "refused") decision = await measure();
        const { proof } = decision;
        span.setAttributes({
          "loraline.proof.probes": proof.probes,
          "loraline.proof.agreement": proof.agreement,
          "loraline.proof.agreement_limit": proof.agreementLimit,
          "loraline.proof.effect": proof.effect,
          "loraline.proof.effect_expected": proof.effectExpected,
        });
        const now = await engine.readIncarnation();
        if (now !== before) throw new RetryLaterError("ENGINE_RESTARTED", 0, `the engine restarted while ${loraName} was being proven`);
        if (decision.kind === "refused") span.setAttribute("loraline.refused", decision.problem.code);
        else answers.keep(measured);
        return { kind: decision.kind, proof, problem: decision.kind === "refused" ? decision.problem : null, incarnation: now };
      }),

    async unload(loraName) {
      const outcome = await client.unload(loraName);
      if (outcome.kind === "done") engine.stepped(loraName, null);
      return outcome;
    },
  };
}

/** @throws unless the engine holds the adapter now, as far as its answer tells */
function refuseUnlessDone(outcome: LoadOutcome, { loraName }: WantedAdapter): void {
  switch (outcome.kind) {
    case "done":
    case "already-loaded":
      return;
    case "feature-off":
      throw new RetryLaterError("ENGINE_WITHOUT_RUNTIME_LORA", 30_000, outcome.message);
    case "unknown":
      throw new RetryLaterError("ENGINE_UNKNOWN", 1000, `whether ${loraName} is loaded is not known: ${outcome.message}`);
    case "refused":
      throw new EngineRefusedError(outcome.status, outcome.message);
  }
}

/** Whose fault an error is: the adapter's files', this replica's, or unknown. */
export function faultOf(error: unknown, loraName: string): Fault {
  if (error instanceof EngineRefusedError) {
    return {
      of: "unknown",
      problem: { code: "ENGINE_REFUSED", message: `the engine refused ${loraName} (HTTP ${error.status}): ${error.message}` },
    };
  }
  if (error instanceof EngineUnknownError) return { of: "replica", problem: { code: "ENGINE_UNKNOWN", message: error.message } };
  const problem = problemOf(error);
  // The store is away: trying does no harm, and no message comes when the store is back.
  if (error instanceof UnavailableError) return { of: "replica", problem, mostMs: 30_000 };
  if (error instanceof RetryLaterError) return { of: "replica", problem, afterMs: error.afterMs };
  // These were found in the files themselves, by judge-adapter.ts or by the shape of a manifest.
  if (error instanceof PermanentError && (problem.code.startsWith("ADAPTER_") || problem.code === "OBJECT_INVALID"))
    return { of: "adapter", problem };
  // A blob that is missing or corrupt is so for every replica, unless only this replica's connection to the store is at fault.
  return { of: error instanceof PermanentError && problem.code.startsWith("OBJECT_") ? "unknown" : "replica", problem };
}

const attributesOf = ({ tenant, adapter, version, digest, loraName }: WantedAdapter): Record<string, string | number> => ({
  "loraline.tenant": tenant,
  "loraline.adapter": adapter,
  "loraline.version": version,
  "loraline.digest": digest,
  "loraline.engine_name": loraName,
});
