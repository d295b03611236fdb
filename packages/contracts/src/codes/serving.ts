/** Codes about adapters and how they are served: files, gate, proof, placement, aliases, engines. */
import { defineArea } from "./define-area.ts";

export const adapterCodes = defineArea(
  {
    title: "Files of an adapter",
    where: "packages/models, packages/cli, services/gateway, services/serve, services/train/trainer",
    audience: "user",
  },
  {
    ADAPTER_FILES_MISSING: ["A file of the adapter is missing.", "Give adapter_config.json and adapter_model.safetensors."],
    ADAPTER_FILES_SPOILED: ["The files on the replica's disk are not what was published.", "Wait: they are fetched again.", "operator"],
    ADAPTER_PICKLE_REFUSED: ["The weights are a pickle, which can run code when it is read.", "Save them as safetensors."],
    ADAPTER_NOT_FOUND: [
      "There is no adapter where the command looked.",
      "Give a folder, a model of the hub, an https address or a digest.",
    ],
    ADAPTER_CONFIG_INVALID: ["adapter_config.json cannot be read, or is no LoRA's.", "Save the adapter again with PEFT."],
    ADAPTER_FEATURE_UNSUPPORTED: ["The adapter uses a feature that is not served.", "Train it without the feature that the message names."],
    ADAPTER_UNREADABLE: ["The weights cannot be read.", "Save the adapter again, and upload it again."],
    ADAPTER_BASE_MISMATCH: ["The adapter was trained on another base.", "Use the base it was trained on; the message says how to insist."],
    ADAPTER_RANK_TOO_HIGH: [
      "The adapter's rank is higher than the engine serves.",
      "Train a lower rank, or start the engine with a higher max_lora_rank.",
    ],
    ADAPTER_NOT_CANONICAL: [
      "The adapter has ranks or scalings per module that some engines ignore.",
      "Fold the scaling into lora_B and give all modules one rank.",
    ],
    ADAPTER_TENSOR_UNKNOWN: ["A tensor of the adapter is no low-rank weight.", "Remove it, or train without the feature that made it."],
    ADAPTER_TENSOR_MISSING: ["A module of the adapter has only one of its two weights.", "Save the adapter again."],
    ADAPTER_SHAPE_MISMATCH: ["Weights of the adapter do not have the shapes that its rank asks for.", "Save the adapter again."],
    ADAPTER_DTYPE: ["Weights of the adapter are of a number type that is not served.", "Save them as BF16, F16 or F32."],
    ADAPTER_NAN: ["Weights of the adapter are not finite.", "Train again with a lower learning rate."],
    ADAPTER_MODULE_UNKNOWN: ["The base has no module that the adapter changes.", "Use the base it was trained on."],
    ADAPTER_EMPTY: ["The adapter holds no weights.", "Save the adapter again."],
    ADAPTER_ZERO: ["The adapter's weights do nothing.", "Check the learning rate and the dataset, and train again."],
    SYMLINK_REFUSED: ["A file of the adapter is a link that leads out of its folder.", "Copy the file into the folder."],
  },
);

export const gateCodes = defineArea(
  { title: "The gate and the proof", where: "services/serve", audience: "user" },
  {
    RUN_UNKNOWN: ["A run was trained that nobody requested.", "Publish run.requested before run.trained.", "developer"],
    ADAPTER_BASE_CHANGED: ["The adapter's earlier versions are of another base.", "Choose another name."],
    EVIDENCE_MISMATCH: ["The evidence is of another adapter.", "Train again.", "developer"],
    NOT_BETTER_THAN_BASE: [
      "The adapter's held-out loss is not better than the base's.",
      "Use more or better data, or train longer; `gate: none` serves it all the same.",
    ],
    NOT_BETTER_THAN_PROMOTED: [
      "The adapter's held-out loss is not better than that of the promoted version.",
      "Use more or better data, or choose another gate.",
    ],
    LESS_ACCURATE_THAN_BASE: [
      "The adapter finds fewer held-out tokens than the base.",
      "Use more or better data, or leave out gate_accuracy.",
    ],
    LESS_ACCURATE_THAN_PROMOTED: [
      "The adapter finds fewer held-out tokens than the promoted version.",
      "Use more or better data, or leave out gate_accuracy.",
    ],
    NO_EFFECT: ["The adapter answers like the base.", "Raise the learning rate or the steps, or look at the dataset."],
    PROOF_WITHOUT_PROBES: ["The trainer recorded no probes, so nothing can be proven.", "Train again.", "developer"],
    PROOF_NOT_FINITE: ["The replica computes numbers that are not finite with this adapter.", "Train again with a lower learning rate."],
    PROOF_BASE_DIFFERS: [
      "The replica's base is not the one the adapter was trained on.",
      "Serve the same files that training used.",
      "operator",
    ],
    PROOF_WITHOUT_EFFECT: [
      "The replica lists the adapter but answers like the base.",
      "Look at the names of the modules and at the engine's version.",
      "operator",
    ],
    PROOF_SCALING: ["The replica applies the adapter by another amount than the trainer.", "Look at lora_alpha, the rank and the scaling."],
    PROOF_DISAGREES: ["The replica answers like another adapter.", "Look at the engine's version and its other adapters.", "operator"],
    REFUSED: ["A replica refused the adapter without saying why.", "Look at the log of the replica's agent.", "operator"],
  },
);

export const aliasCodes = defineArea(
  { title: "Versions, aliases and canaries", where: "services/serve, services/operator, packages/cli", audience: "user" },
  {
    ADAPTER_UNKNOWN: ["There is no adapter of this name.", "Check the name; an adapter is there when a run of it is trained."],
    VERSION_UNKNOWN: ["The adapter has no such version.", "Use one of the versions that the message lists."],
    VERSION_REFUSED: ["The version was refused and will not be served.", "Read the reason, and train again."],
    VERSION_DELETED: ["The version was deleted.", "Promote another version, or train again."],
    VERSION_GONE: ["The version that was to be promoted was refused or deleted meanwhile.", "Promote another version."],
    VERSION_PROMOTED: ["The version is promoted, so it cannot be deleted.", "Promote another version first."],
    VERSION_IN_CANARY: ["The version is the canary, so it cannot be deleted.", "End the canary first."],
    VERSION_NOT_SERVED: [
      "The version is still being loaded for its run, so it cannot be deleted.",
      "Cancel the run, or wait until it is served.",
    ],
    SUPERSEDED: ["A later command took the place of this move.", "Nothing has to be done."],
    GIVEN_UP: ["A move of the alias was given up.", "Read the reason, and promote again."],
    NOT_MOVED: ["The alias did not move.", "Read the reason, and promote again."],
    VERSION_NOT_PROVEN: ["The version is proven on no ready replica.", "Wait until it is, then promote it."],
    NOTHING_PROMOTED: ["No version of the adapter is promoted.", "Promote one."],
    NOTHING_DESIRED: ["No version of the adapter is to be held.", "Request a run."],
    NOT_PROVEN: ["The promoted version answers on no ready replica.", "Wait, or look at the replicas.", "operator"],
    NO_EARLIER_VERSION: ["There is no earlier version to go back to.", "Promote a version by its number."],
    NOT_EARLIER: ["The version comes after the promoted one.", "Promote it instead of rolling back to it."],
    MOVED_ELSEWHERE: [
      "Somebody moved the alias after the resource asked for it.",
      "Remove the resource's field, or set it to the version that is meant.",
    ],
    CANARY_LOSS: [
      "The canary's held-out loss is too much higher than the promoted version's.",
      "Train again, or raise the canary's limit.",
    ],
    CANARY_LOSS_NOT_COMPARABLE: [
      "The held-out losses of the two versions cannot be compared.",
      "Measure both on the same rows, or leave out the limit.",
    ],
    CANARY_ERRORS: ["Too many answers of the canary failed.", "Look at the replicas' logs."],
    CANARY_SLOW: ["The canary answers too slowly.", "Look at the replicas, or raise the canary's limit."],
    CANARY_NOT_PROVEN: ["The canary has been proven on no ready replica for too long.", "Look at the replicas.", "operator"],
    CANARY_VERSION_GONE: ["The canary's version was refused or deleted.", "Promote another version."],
  },
);

export const placementCodes = defineArea(
  { title: "Engines, replicas and placement", where: "services/serve, services/gateway (advice)", audience: "operator" },
  {
    NO_ENGINE: ["No engine is registered yet.", "Wait until one is up, or start one."],
    NO_REPLICA: ["No replica of the engine is ready.", "Start one, or look at those there are."],
    NO_ROOM: ["The replicas have no room for the adapter.", "Raise max_cpu_loras, or add replicas."],
    FEWER_REPLICAS: ["The adapter is on fewer replicas than were asked for.", "Add replicas, or ask for fewer."],
    PIN_NOT_HELD: ["A replica that the adapter is pinned to does not hold it.", "Start the replica, or pin the adapter elsewhere."],
    QUARANTINE: ["Some replicas cannot hold some adapters.", "Look at `loraline adapters` for which and why."],
    SPREAD: ["Each replica holds only some of the adapters.", "Raise max_cpu_loras to hold all on each."],
    WORKING_SET_TOO_BIG: ["More adapters are asked than the engine has slots.", "Raise max_loras, or add replicas."],
    RANK_TOO_ROOMY: ["max_lora_rank is higher than any adapter's rank.", "Lower it to save memory."],
    SLOTS_UNUSED: ["The engine has more slots than adapters are asked.", "Lower max_loras to save memory."],
    LEAVING: ["The replica is about to end.", "Wait: others answer."],
    UNLOAD_FAILED: ["The engine did not unload an adapter.", "Look at the engine's log; it is tried again."],
    ENGINE_REFUSED: ["The engine refused to load the adapter.", "Look at the message and at the engine's log."],
    ENGINE_RESTARTED: ["The engine restarted while an adapter was being proven.", "Wait: it is proven again."],
    ENGINE_UNKNOWN: [
      "The engine is not known, or did not say whether it loaded an adapter.",
      "Wait: it is asked again; or correct the engine's name.",
    ],
    ENGINE_UNREGISTERED: ["The agent's engine is not in the list of engines.", "Start the serve controller, or correct the engine's name."],
    ENGINE_KEY_REFUSED: ["The engine refuses the agent's key.", "Make ENGINE_API_KEY and the engine's own key the same."],
    ENGINE_WITHOUT_RUNTIME_LORA: [
      "The engine cannot load adapters while it runs.",
      "Start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora.",
    ],
    BASE_NOT_READ: ["The engine's base cannot be read.", "Put its files where the message says."],
    ENGINES_INVALID: ["The file of engines is no list of engines.", "Correct the field that the message names."],
    ENGINE_IMPOSSIBLE: ["The engine's settings cannot work with its base.", "Correct what the message lists."],
  },
);

export const engineSettingsCodes = defineArea(
  { title: "Settings of an engine", where: "packages/contracts (engine settings), services/serve (setup)", audience: "operator" },
  {
    API_SERVERS: ["vLLM cannot load adapters with more than one API server.", "Use more replicas, or add --api-server-count=1."],
    ARCHITECTURE_WITHOUT_LORA: ["vLLM serves this architecture without LoRA.", "Choose another base."],
    ARG_TAKEN: ["An extra argument is set by something else.", "Leave it out."],
    BASE_MULTIMODAL: ["The base is multimodal, so adapters would do nothing.", "Choose a base of text only."],
    CPU_LORAS_TOO_FEW: ["maxCpuLoras is lower than maxLoras.", "Raise maxCpuLoras."],
    GPUS_TOO_FEW: ["There are fewer GPUs than shards.", "Raise gpus, or lower tensorParallelSize."],
    HEADS_NOT_DIVISIBLE: ["The number of shards does not divide the base's attention heads.", "Use a number that the message lists."],
    KV_CACHE_UNSUPPORTED: ["The device does not keep the KV cache in this type.", "Use a type that the message lists."],
    MAX_MODEL_LEN_TOO_HIGH: ["maxModelLen is longer than the base was made for.", "Lower it."],
    QUANTIZATION_MISMATCH: ["The base's weights are stored in another way than quantization says.", "Leave quantization out."],
    QUANTIZATION_UNKNOWN: ["vLLM does not read the way in which the base's weights are stored.", "Choose another base, or convert it."],
  },
);
