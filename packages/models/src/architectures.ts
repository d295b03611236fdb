/**
 * The architectures whose language model stands inside of a wrapper, beside a vision tower. Adapters are for the language model only. Their
 * names are those of the whole model as transformers builds it, since these are what vLLM 0.32 maps to its own; names as they would be without
 * the wrapper, or with another one, vLLM ignores without a word. An architecture that is not here is refused by its engine.
 */

interface Wrapper {
  /** Begins the names of the language model's modules. */
  readonly languageModel: string;
  /** Why no adapter can be served on it. Absent: adapters are trained, served and proven; families-under-test.py makes a small one. */
  readonly refused?: string;
  /**
   * How it takes pictures (packages/tokens/src/pictures/vision.ts, services/train/trainer/pictures.py). Absent: none are trained or served, because
   * the trainer does not know its processor, or vLLM needs something for it that is not installed.
   */
  readonly pictures?: PictureFamily;
  /** `model_type` of the only tower with which it takes pictures so. Absent: the architecture has one kind of tower. */
  readonly tower?: string;
}

export type PictureFamily = "idefics3" | "internvl" | "llava" | "mistral3" | "qwen-vl";

const inside: Wrapper = { languageModel: "model.language_model." };
const qwen: Wrapper = { ...inside, pictures: "qwen-vl" };
const idefics: Wrapper = { languageModel: "model.text_model." };

const wrappers: Readonly<Record<string, Wrapper>> = {
  Qwen2VLForConditionalGeneration: qwen,
  Qwen2_5_VLForConditionalGeneration: qwen,
  Qwen3VLForConditionalGeneration: qwen,
  Qwen3_5ForConditionalGeneration: qwen,
  Gemma4ForConditionalGeneration: inside,
  Llama4ForConditionalGeneration: {
    languageModel: "language_model.model.",
    // The proof of its tiny member says so (PROOF_SCALING); `permute_qk_weight_for_rotary` in vLLM's llama4.py is why.
    refused: "vLLM 0.32 keeps its q_proj and k_proj in another order than an adapter's, and so applies adapters wrongly",
  },
  InternVLForConditionalGeneration: { ...inside, pictures: "internvl" },
  // With Pixtral's tower it is another family, whose pictures keep their shapes.
  LlavaForConditionalGeneration: { ...inside, pictures: "llava", tower: "clip_vision_model" },
  LlavaNextForConditionalGeneration: inside,
  Gemma3ForConditionalGeneration: inside,
  Mistral3ForConditionalGeneration: { ...inside, pictures: "mistral3" },
  SmolVLMForConditionalGeneration: idefics,
  Idefics3ForConditionalGeneration: { ...idefics, pictures: "idefics3" },
};

/** Those whose adapters are served. */
export const servedWrappers = Object.keys(wrappers).filter((name) => wrappers[name]?.refused === undefined);

/** The beginnings under which files and adapters name the language model's modules: of newer and older transformers, and without a wrapper. */
const beginnings = ["model.language_model.", "language_model.model.", "model.text_model.", "language_model.", "model."];

/** @returns a module's name within the language model: `layers.0.self_attn.q_proj`; undefined: it is none of its modules. */
function withinLanguageModel(name: string): string | undefined {
  const beginning = beginnings.find((each) => name.startsWith(each));
  const rest = beginning === undefined ? "" : name.slice(beginning.length);
  // The short beginnings are those of towers, too.
  return rest.startsWith("layers.") || (rest !== "" && beginnings.indexOf(beginning as string) < 3) ? rest : undefined;
}

/** @returns a module's name as the whole model has it; undefined: it is no module of the language model. */
export function moduleInWrapper(name: string, { languageModel }: Wrapper): string | undefined {
  const rest = withinLanguageModel(name);
  return rest === undefined ? undefined : `${languageModel}${rest}`;
}

/** @returns the names that a module may have: its own first, then those with other wrappers and without one. */
export function spellingsOf(name: string): string[] {
  const rest = withinLanguageModel(name);
  return rest === undefined ? [name] : [name, ...beginnings.map((each) => `${each}${rest}`)];
}

/** @param config - a model's config.json. undefined: its language model is the whole model, or its architecture is not known here. */
export function wrapperOf(config: unknown): Wrapper | undefined {
  const { architectures } = (typeof config === "object" && config !== null ? config : {}) as { architectures?: unknown };
  const names = Array.isArray(architectures) ? architectures.filter((each) => typeof each === "string") : [];
  const name = names.find((each) => Object.hasOwn(wrappers, each));
  return name === undefined ? undefined : wrappers[name];
}

/** @param config - a model's config.json. undefined: it takes no pictures, or in a way that is not known here. */
export function picturesOf(config: unknown): PictureFamily | undefined {
  const { pictures, tower } = wrapperOf(config) ?? {};
  const { vision_config: vision } = (config ?? {}) as { vision_config?: { model_type?: unknown } | null };
  // transformers takes the usual tower where none is named.
  return tower === undefined || (vision?.model_type ?? tower) === tower ? pictures : undefined;
}

/** Whether a module's name is one of a language model in a wrapper. */
export const isInWrapper = (module: string): boolean =>
  Object.values(wrappers).some(({ languageModel }) => module.startsWith(languageModel));

/** Whether layers of the language model are mixtures of experts. @param config - a model's config.json. */
export function hasExperts(config: unknown): boolean {
  const fields = ["num_experts", "num_local_experts", "n_routed_experts"];
  const { text_config: text } = (config ?? {}) as { text_config?: unknown };
  return [config, text].some((each) =>
    fields.some((field) => Number((each as Record<string, unknown> | null | undefined)?.[field] ?? 0) > 1),
  );
}
