/** Pure: the model card (README.md) of a version that is taken out, and its adapter_config.json as other programs load it. */
import {
  type AdapterManifest,
  type AdapterVersion,
  type BaseOrigin,
  type DatasetState,
  isPreference,
  preferenceWords,
  type Proof,
  type RunState,
} from "@loraline/contracts";

/** What is known of a version. What was deleted meanwhile is undefined, and the card says so. */
export interface KnownOfVersion {
  adapter: string;
  version: AdapterVersion;
  manifest: AdapterManifest;
  origin: BaseOrigin | undefined;
  run: RunState | undefined;
  dataset: DatasetState | undefined;
  validation: DatasetState | undefined;
  /** Proofs on replicas that hold it now. */
  proofs: readonly Proof[];
}

/** Ranks that vLLM's `--max-lora-rank` takes. */
const vllmRanks = [8, 16, 32, 64, 128, 256, 320, 512];

/** The base's name for other programs: that of the hub, where it has one. */
const baseNameOf = ({ manifest, origin }: Pick<KnownOfVersion, "manifest" | "origin">): string => origin?.hub ?? manifest.base.name;

/**
 * Changes the config's base and revision to those of the hub, so that `AutoPeftModel` finds the base. A base that has no name there keeps
 * its own; a revision that only Loraline knows is left out, since PEFT would ask the hub for it.
 */
export function configToTake(text: string, known: Pick<KnownOfVersion, "manifest" | "origin">): string {
  const config = JSON.parse(text) as Record<string, unknown>;
  return `${JSON.stringify({ ...config, base_model_name_or_path: baseNameOf(known), revision: known.origin?.revision ?? null }, null, 2)}\n`;
}

/** Text in Markdown's code, whatever it contains: names of files are other people's. */
const code = (text: string): string => `\`${text.replaceAll(/[`\s]+/g, " ")}\``;
const fenced = (language: string, text: string): string[] => {
  const longest = Math.max(2, ...(text.match(/`+/g) ?? []).map((run) => run.length));
  const fence = "`".repeat(longest + 1);
  return [`${fence}${language}`, text, fence];
};
const count = (amount: number): string => amount.toLocaleString("en");

export function modelCardOf(known: KnownOfVersion): string {
  const { adapter, version, manifest, origin } = known;
  const { name, revision, digest } = manifest.base;
  const hub = origin?.hub ?? undefined;
  const modules = manifest.targetModules.map(code).join(", ");
  const rank = vllmRanks.find((most) => most >= manifest.rank) ?? manifest.rank;
  const inPython =
    hub === undefined
      ? [
          "from peft import PeftModel",
          "from transformers import AutoModelForCausalLM",
          "",
          `model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("PATH OF THE BASE"), "DIR")`,
        ]
      : ["from peft import AutoPeftModelForCausalLM", "", `model = AutoPeftModelForCausalLM.from_pretrained("DIR")`];
  return [
    "---",
    ...(hub === undefined ? [] : [`base_model: ${JSON.stringify(hub)}`]),
    "library_name: peft",
    "pipeline_tag: text-generation",
    "tags: [lora, loraline]",
    "---",
    "",
    `# ${adapter}, version ${version.version}`,
    "",
    `A LoRA for ${code(baseNameOf(known))}: rank ${manifest.rank} on ${modules}, ${count(manifest.parameters)} parameters in bf16. The scaling is folded into \`lora_B\`, so \`lora_alpha\` equals \`r\`.`,
    "",
    "## Use",
    "",
    ...fenced("python", inPython.join("\n")),
    "",
    ...fenced("sh", `vllm serve ${hub ?? "PATH_OF_THE_BASE"} --enable-lora --max-lora-rank ${rank} --lora-modules ${adapter}=DIR`),
    ...(version.system
      ? [
          "",
          "## System prompt",
          "",
          "It was trained with this system prompt, and answers as it was trained only with it:",
          "",
          ...fenced("", version.system),
        ]
      : []),
    "",
    "## Base",
    "",
    `${code(name)}, revision ${code(revision)}, ${code(digest)} (sha256 over its files).`,
    ...(hub === undefined ? [] : ["", `On the hub: ${code(hub)}${origin?.revision ? `, revision ${code(origin.revision)}` : ""}.`]),
    ...(origin?.made ? ["", `How it was made: ${origin.made}`] : []),
    "",
    "## Data",
    "",
    ...dataLines(known),
    "",
    "## Settings",
    "",
    ...settingsLines(known),
    "",
    "## Evaluation",
    "",
    ...evaluationLines(version),
    "",
    "## Proof",
    "",
    ...proofLines(known),
    "",
    "## Where it comes from",
    "",
    `Run \`${version.runId}\`, made ${version.createdAt}. Loraline knows it as ${code(version.digest)}; \`loraline adapters add DIR\` gives the same digest again.`,
    "",
  ].join("\n");
}

function dataLines({ run, dataset, validation }: KnownOfVersion): string[] {
  if (run === undefined) return ["The run that made it was deleted, and with it what is known of its data."];
  const { method } = run.spec;
  if (method.type === "import") return [`It was trained elsewhere, on data that is not known here. It came from ${code(method.source)}.`];
  const tokens = run.tokens?.totals;
  return [
    dataset === undefined
      ? `Dataset \`${run.spec.dataset}\`, which was deleted.`
      : `${code(dataset.filename)}${dataset.blob === null ? "" : `, ${code(dataset.blob.digest)}`}: ${count(dataset.records ?? 0)} records, ${count(dataset.rejections ?? 0)} rows rejected.`,
    ...(run.spec.validation === undefined
      ? []
      : [
          "",
          `Validated on ${validation === undefined ? `dataset \`${run.spec.validation}\`, which was deleted` : code(validation.filename)}.`,
        ]),
    ...(tokens === undefined
      ? []
      : [
          "",
          `${count(tokens.sequences)} sequences, ${count(tokens.tokens)} tokens, ${count(tokens.supervised)} of them trained on; ${count(tokens.evalSequences)} sequences held out.`,
        ]),
  ];
}

function settingsLines({ run }: KnownOfVersion): string[] {
  if (run === undefined) return ["They were deleted with the run."];
  if (run.spec.method.type === "import") return ["Not known: it was trained elsewhere."];
  const { lora, training, tokenize } = run.spec;
  return fenced(
    "json",
    JSON.stringify({ method: isPreference(run.spec.method) ? run.spec.method : run.spec.method.type, lora, training, tokenize }, null, 2),
  );
}

function evaluationLines({ evaluation }: AdapterVersion): string[] {
  if (evaluation === null) return ["None: nothing was held out."];
  const percent = (share: number | null | undefined): string => (typeof share === "number" ? `${(share * 100).toFixed(1)} %` : "-");
  return [
    `On ${count(evaluation.rows)} held-out rows, ${count(evaluation.supervised_tokens)} supervised tokens:`,
    "",
    "| | base | adapter |",
    "|---|---|---|",
    `| loss per token | ${evaluation.base_loss.toFixed(4)} | ${evaluation.adapter_loss.toFixed(4)} |`,
    `| likeliest token is right | ${percent(evaluation.base_accuracy)} | ${percent(evaluation.adapter_accuracy)} |`,
    ...(evaluation.preference ? ["", `It learned from preferences: ${preferenceWords(evaluation.preference)}.`] : []),
  ];
}

function proofLines({ proofs, version }: KnownOfVersion): string[] {
  const [first] = proofs;
  if (first === undefined) {
    return version.servedAt === null
      ? ["None: no replica has shown yet that it applies this version."]
      : [`Proven on ${version.servedOn ?? "the"} replicas at ${version.servedAt}; none holds it just now.`];
  }
  return [
    `${proofs.length === 1 ? "One replica holds" : `${proofs.length} replicas hold`} it, proven. The one proven first (${first.provenAt}) was asked ${first.probes} prompts:`,
    "",
    `- log-probabilities of ${first.tokens} tokens differ from the trainer's by ${first.agreement.toFixed(4)} on average (limit ${first.agreementLimit.toFixed(2)});`,
    `- the adapter moves the base's by ${first.effect.toFixed(2)} (in the trainer: ${first.effectExpected.toFixed(2)})` +
      (typeof first.unseen === "number" && first.unseen < 1
        ? `; up to ${(100 * first.unseen).toPrecision(2)} % of that could be missing unseen.`
        : "."),
  ];
}
