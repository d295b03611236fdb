/** Codes about adapters and how they are served: files, gate, proof, placement, aliases, engines. */
import { defineArea } from "./define-area.ts";

export const adapterCodes = defineArea(
  {
    title: "Files of an adapter",
    where: "checking an adapter's files: at an upload, after a training, and before an engine loads them",
    sources: "packages/models, packages/cli, services/gateway, services/serve, services/train/trainer",
    audience: "user",
  },
  {
    ADAPTER_FILES_MISSING: ["adapter_config.json or adapter_model.safetensors is missing.", "Give both files."],
    ADAPTER_FILES_SPOILED: [
      "The adapter's files on the replica's disk were changed after they were fetched.",
      "Wait: they are fetched again. If it repeats, look at the disk.",
      "operator",
    ],
    ADAPTER_PICKLE_REFUSED: [
      "The weights are a pickle, a format that can run code when it is read.",
      "Save the adapter with `model.save_pretrained(DIR, safe_serialization=True)`.",
    ],
    ADAPTER_NOT_FOUND: ["The source is no folder, no model of the hub, no https address and no digest.", "Give one of these four."],
    ADAPTER_CONFIG_INVALID: ["adapter_config.json cannot be read, or does not describe a LoRA.", "Save the adapter again with PEFT."],
    ADAPTER_FEATURE_UNSUPPORTED: [
      "The adapter uses a feature of PEFT that the engine cannot serve.",
      "Train it without the feature that the message names, or convert it as the message says.",
    ],
    ADAPTER_UNREADABLE: ["adapter_model.safetensors is not a valid safetensors file.", "Save the adapter again, and upload it again."],
    ADAPTER_BASE_MISMATCH: [
      "The adapter was trained on another base than the one it is to be served on.",
      "Serve it on the base it was trained on; if both names mean one base, say so with --any-base.",
    ],
    ADAPTER_RANK_TOO_HIGH: [
      "The adapter's rank is higher than the engine can serve.",
      "Train with a lower lora.r, or have the engine started for higher ranks: `loraline up --max-lora-rank`, or maxLoraRank in the chart.",
    ],
    ADAPTER_NOT_CANONICAL: [
      "The adapter has different ranks or scalings for different modules, which some engines ignore.",
      "Fold the scaling into lora_B, and pad all modules to one rank.",
    ],
    ADAPTER_TENSOR_UNKNOWN: [
      "The weights contain a tensor that is not lora_A or lora_B of a module.",
      "Remove it, or train without the feature that made it.",
    ],
    ADAPTER_TENSOR_MISSING: ["A module of the adapter has lora_A without lora_B, or the reverse.", "Save the adapter again."],
    ADAPTER_SHAPE_MISMATCH: [
      "Weights do not have the shapes that the rank in adapter_config.json requires.",
      "Save weights and configuration again, together.",
    ],
    ADAPTER_DTYPE: ["Weights of the adapter are stored in a number type that is not served.", "Save them as BF16, F16 or F32."],
    ADAPTER_NAN: [
      "Weights of the adapter are infinite or not numbers (NaN): its training diverged.",
      "Train again with a lower learning rate.",
    ],
    ADAPTER_MODULE_UNKNOWN: ["The adapter changes a module that the base does not have.", "Serve it on the base it was trained on."],
    ADAPTER_EMPTY: ["adapter_model.safetensors holds no LoRA weights.", "Save the adapter again."],
    ADAPTER_ZERO: [
      "All weights lora_B are zero, so the adapter changes nothing.",
      "Check the learning rate and the dataset, and train again.",
    ],
    SYMLINK_REFUSED: ["A file of the adapter is a link that leads out of its folder.", "Copy the file into the folder."],
  },
);

export const gateCodes = defineArea(
  {
    title: "The gate and the proof",
    where: "the checks after a training: whether the version may be served (the gate), and whether each replica applies it (the proof)",
    sources: "services/serve",
    audience: "user",
  },
  {
    RUN_UNKNOWN: [
      "A message names a run that nobody requested: that it was trained, or that it is to be cancelled, paused or resumed.",
      "Check the id. A client that publishes events itself must publish run.requested first.",
      "developer",
    ],
    ADAPTER_BASE_CHANGED: [
      "The adapter's earlier versions belong to another base, and all versions of an adapter share one base.",
      "Choose another adapter name.",
    ],
    EVIDENCE_MISMATCH: [
      "The record of the trainer's measurements belongs to another adapter.",
      "Request the run again, and report it.",
      "developer",
    ],
    NOT_BETTER_THAN_BASE: [
      "On held-out examples the adapter's loss is not lower than the base's.",
      "Use more or better data, fewer epochs or a lower learning rate; `gate: none` serves it anyway.",
    ],
    PREFERENCE_NOT_LEARNED: [
      "On held-out pairs the adapter prefers the chosen answer hardly more often than a coin would: the 95 % interval of its accuracy reaches down to one half.",
      "Give more pairs, train longer or at a higher learning rate; `gate: none` serves it anyway.",
    ],
    PREFERENCE_LOSS_NOT_LOWER: [
      "The loss on held-out pairs is not below that of a model that prefers nothing (ln 2 for the usual DPO), although the chosen side is preferred more often.",
      "Use fewer epochs, a lower learning rate or `method.label_smoothing`, and look for pairs the wrong way round; `gate: none` serves it anyway.",
    ],
    NOT_BETTER_THAN_PROMOTED: [
      "On the same held-out examples the adapter does worse than the promoted version: its loss is higher, or it prefers the chosen answers less often.",
      "Use more or better data; `gate: better-than-base` serves it anyway.",
    ],
    LESS_ACCURATE_THAN_BASE: [
      "The adapter predicts fewer held-out tokens correctly than the base does.",
      "Use more or better data; without `gate_accuracy` the loss alone decides.",
    ],
    LESS_ACCURATE_THAN_PROMOTED: [
      "The adapter predicts fewer held-out tokens correctly than the promoted version does.",
      "Use more or better data; without `gate_accuracy` the loss alone decides.",
    ],
    NO_EFFECT: [
      "The trained adapter answers like the base: training changed nothing.",
      "Raise training.learning_rate or the number of steps, or look at the dataset.",
    ],
    PROOF_WITHOUT_PROBES: [
      "The trainer recorded no test prompts (probes), so no replica can be proven to apply the adapter.",
      "Request the run again, and report it.",
      "developer",
    ],
    PROOF_NOT_FINITE: [
      "With this adapter the replica computes values that are not numbers (NaN).",
      "Train again with a lower learning rate.",
    ],
    PROOF_BASE_DIFFERS: [
      "Without the adapter the replica answers otherwise than the base did in training, so its base's files differ.",
      "Serve the same files of the base that training used.",
      "operator",
    ],
    PROOF_WITHOUT_EFFECT: [
      "The replica says that it has loaded the adapter, but answers like the base.",
      "Check that the adapter's module names are those of the served model, and the engine's version.",
      "operator",
    ],
    PROOF_SCALING: [
      "The replica applies the adapter more strongly or more weakly than the trainer did, or a part of it not at all.",
      "Check lora_alpha, the rank and the scaling in adapter_config.json, and that no layer is missing.",
    ],
    PROOF_DISAGREES: [
      "The replica's answers with this adapter are not those that the trainer recorded; it answers as with another adapter.",
      "Check the engine's version; restart the replica, and report it if it happens again.",
      "operator",
    ],
    REFUSED: ["A replica refused the adapter without a reason.", "Look at the log of the replica's agent.", "operator"],
  },
);

export const aliasCodes = defineArea(
  {
    title: "Versions, aliases and canaries",
    where: "promoting, rolling back or deleting a version, or the status of an Adapter resource",
    sources: "services/serve, services/operator, packages/cli",
    audience: "user",
  },
  {
    ADAPTER_UNKNOWN: ["There is no adapter of this name.", "Check the name; an adapter exists once a run for it has been trained."],
    ADAPTER_IN_TRAINING: [
      "A run that trains the adapter has not ended, so the adapter cannot be deleted.",
      "Cancel the run, or wait for it, and delete the adapter again.",
    ],
    VERSION_UNKNOWN: ["The adapter has no such version.", "Use one of the versions that the message lists."],
    VERSION_REFUSED: [
      "The version was refused, so it is not served and cannot be promoted.",
      "Read the reason in the message, and train again.",
    ],
    VERSION_DELETED: ["The version was deleted, so it cannot be promoted.", "Promote another version, or train again."],
    VERSION_GONE: ["The alias was waiting to move to a version that was refused or deleted meanwhile.", "Promote another version."],
    VERSION_PROMOTED: ["The version is promoted, so it cannot be deleted.", "Promote another version first."],
    VERSION_IN_CANARY: [
      "The version is the canary of a running rollout, so it cannot be deleted.",
      "End the canary with a rollback of the adapter, then delete the version.",
    ],
    VERSION_NOT_SERVED: [
      "The version is still being loaded for its run, so it cannot be deleted.",
      "Cancel the run, or wait until it is served.",
    ],
    SUPERSEDED: [
      "The alias did not move to this version, because another version was asked for or proven meanwhile.",
      "Nothing has to be done.",
    ],
    GIVEN_UP: [
      "The alias did not move to the version; the program recorded no code for the reason.",
      "Read the reason in the message, and promote again.",
    ],
    NOT_MOVED: [
      "The alias did not move to the version; the server gave no code for the reason.",
      "Read the reason in the message, and promote again.",
    ],
    VERSION_NOT_PROVEN: [
      "No ready replica has the version loaded and proven, so the alias cannot move to it.",
      "Promote it again when a replica has it; `loraline adapters` shows where it is.",
    ],
    NOTHING_PROMOTED: [
      "No version of the adapter is promoted, so its name answers nothing and cannot be rolled back.",
      "Promote a version.",
    ],
    NOTHING_DESIRED: ["The adapter has no version that replicas should hold.", "Request a run for it, or promote one of its versions."],
    NOT_PROVEN: [
      "The promoted version is loaded and proven on no ready replica, so it does not answer.",
      "Wait, or look at the replicas with `loraline engines`.",
      "operator",
    ],
    NO_EARLIER_VERSION: [
      "No served version is older than the promoted one, so there is none to go back to.",
      "Promote a version by its number.",
    ],
    NOT_EARLIER: ["A rollback names a version that is newer than the promoted one.", "Promote that version instead."],
    MOVED_ELSEWHERE: [
      "The adapter was changed in another way after the Kubernetes resource asked for its value; the last change counts.",
      "Remove the field from the resource; to ask for its value again, set it again afterwards.",
    ],
    CANARY_LOSS: [
      "On held-out examples the canary's loss is higher than `max_loss_increase` allows, compared with the promoted version.",
      "Train again, or raise `max_loss_increase`.",
    ],
    CANARY_LOSS_NOT_COMPARABLE: [
      "The two versions were not evaluated on the same examples, so their losses cannot be compared.",
      "Give both runs the same validation file, or leave out `max_loss_increase`.",
    ],
    CANARY_ERRORS: [
      "The canary's answers failed more often than `max_error_rate` allows, so it was rolled back.",
      "Ask the version yourself (`loraline chat ADAPTER@VERSION`), and have the operator look at the replicas' logs.",
    ],
    CANARY_SLOW: [
      "The canary answered more slowly than `max_latency_ratio` allows, so it was rolled back.",
      "Have the operator look at the replicas, or raise `max_latency_ratio`.",
    ],
    CANARY_NOT_PROVEN: [
      "For too long no ready replica had the canary's version loaded and proven, so it was rolled back.",
      "Look at the replicas with `loraline engines`, then promote the version again.",
      "operator",
    ],
    CANARY_VERSION_GONE: ["The canary's version was refused or deleted, so the canary ended.", "Promote another version."],
  },
);

export const placementCodes = defineArea(
  {
    title: "Engines, replicas and placement",
    where: "engines, their replicas and the agents beside them, or the advice in `loraline engines`",
    sources: "services/serve, services/gateway, services/operator, services/tokenize",
    audience: "operator",
  },
  {
    NO_ENGINE: ["No engine is registered yet, so no base is known.", "Wait until an engine is up, or start one."],
    REPLICA_URL_REFUSED: [
      "The address that a replica's agent wrote is none that replicas may have, so the gateway does not ask it.",
      "If it is right, allow it with REPLICA_HOSTS (chart: gateway.replicaHosts); otherwise look at who wrote it.",
      "operator",
    ],
    NO_REPLICA: ["No replica of the engine is ready.", "Start a replica, or look at why the existing ones are not ready."],
    NO_ROOM: [
      "All replicas of the engine hold as many adapters as they can, so this one is placed nowhere, or not as asked.",
      "Raise max_cpu_loras, or add replicas.",
    ],
    FEWER_REPLICAS: [
      "The adapter is on fewer replicas than were asked for, because the others have no room or are not there.",
      "Add replicas, raise max_cpu_loras, or ask for fewer replicas.",
    ],
    PIN_NOT_HELD: ["A replica that the adapter is pinned to does not hold it.", "Start the replica, or pin the adapter elsewhere."],
    QUARANTINE: [
      "Some replicas repeatedly failed to load some adapters; other replicas answer for them.",
      "See which and why with `loraline adapters`.",
    ],
    SPREAD: [
      "There are more adapter versions than max_cpu_loras, so each replica holds only some of them.",
      "Nothing has to be done; to have all on each replica, raise max_cpu_loras.",
    ],
    WORKING_SET_TOO_BIG: [
      "More adapters are used at the same time than max_loras allows, so the engine swaps them between requests.",
      "Raise max_loras, or add replicas.",
    ],
    RANK_TOO_ROOMY: ["max_lora_rank is higher than the rank of any adapter, which wastes memory.", "Lower max_lora_rank."],
    SLOTS_UNUSED: ["max_loras is higher than the number of adapters in use, which wastes memory.", "Lower max_loras."],
    LEAVING: ["The replica is shutting down; it finishes the requests that it has.", "Wait: other replicas answer."],
    UNLOAD_FAILED: ["The engine failed to unload an adapter.", "Look at the engine's log; unloading is tried again."],
    ENGINE_REFUSED: [
      "The engine refused to load the adapter; the message has its reason.",
      "Mend the reason in the message; the engine's log may say more.",
    ],
    ENGINE_RESTARTED: ["The engine restarted while an adapter was being proven on it.", "Wait: the adapter is loaded and proven again."],
    ENGINE_UNKNOWN: [
      "The engine gave no clear answer whether it has loaded an adapter; or AGENT_ENGINE names an engine that is not set up.",
      "Wait: the engine is asked again. If the message lists engines, set AGENT_ENGINE to one of them.",
    ],
    ENGINE_UNREGISTERED: [
      "The agent's engine is not registered yet: the serve controller registers engines when it starts.",
      "Start the serve controller, or correct the engine's name in AGENT_ENGINE.",
    ],
    ENGINE_KEY_REFUSED: ["The engine refuses the agent's API key.", "Set ENGINE_API_KEY to the key that the engine was started with."],
    ENGINE_WITHOUT_RUNTIME_LORA: [
      "The engine was started without the permission to load adapters at run time.",
      "Start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora.",
    ],
    BASE_NOT_READ: [
      "The files of the engine's base cannot be read, so nothing new is trained or served on it.",
      "Put the files where the message says; they are looked for again by themselves.",
    ],
    TWIN_CONFIG_DIFFERS: [
      "The base that `derivedFrom` names is another model: it has other sizes.",
      "Name the base whose weights were quantised, or leave derivedFrom out.",
    ],
    TWIN_TOKENIZER_DIFFERS: [
      "A quantised base has another tokenizer than the base that `derivedFrom` names.",
      "Put the original's tokenizer.json into its folder, if the weights are of this base; else name their own.",
    ],
    TWIN_TEMPLATE_DIFFERS: [
      "A quantised base has another chat template than the base that `derivedFrom` names, so adapters would be asked in a form they have never seen.",
      "Put the original's chat_template.jinja into its folder.",
    ],
    TWIN_SCALES_FOLDED: [
      "AWQ's tool has moved scales from the weights into the norms: an adapter of the unquantised base would get other inputs, and do something else.",
      "Leave derivedFrom out, and train on the quantised base itself; the trainer unpacks it.",
    ],
    TWIN_WEIGHTS_DIFFER: [
      "The weights of a quantised base are not those of the base that `derivedFrom` names.",
      "Name the base whose weights were quantised, or leave derivedFrom out.",
    ],
    ENGINES_INVALID: [
      "The list of engines (SERVE_ENGINES_FILE or ENGINES_CONFIG) is not valid.",
      "Correct the field that the message names.",
    ],
    ENGINE_IMPOSSIBLE: [
      "The engine's settings can never work with its base; the message lists each reason with its own code.",
      "Correct each setting that the message names.",
    ],
  },
);

export const engineSettingsCodes = defineArea(
  {
    title: "Settings of an engine",
    where: "checking an engine's settings before it starts",
    sources: "services/serve (engines)",
    audience: "operator",
  },
  {
    API_SERVERS: [
      "vLLM cannot load adapters at run time with more than one API server, and these settings start several.",
      "Use more replicas instead, or add --api-server-count=1 to extraArgs.",
    ],
    ARCHITECTURE_WITHOUT_LORA: ["vLLM supports no LoRA for this base's architecture.", "Choose another base."],
    ARG_TAKEN: [
      "extraArgs holds a flag that Loraline or another setting sets already.",
      "Remove it from extraArgs; use the setting that the message names.",
    ],
    BASE_MULTIMODAL: [
      "The base is multimodal, and not among those whose language model can have adapters in vLLM.",
      "Choose one that the message names, or a base of text only.",
    ],
    CPU_LORAS_TOO_FEW: ["maxCpuLoras is lower than maxLoras, which vLLM does not allow.", "Raise maxCpuLoras to maxLoras or more."],
    GPUS_TOO_FEW: [
      "tensorParallelSize is higher than gpus, and each shard needs a GPU of its own.",
      "Raise gpus, or lower tensorParallelSize.",
    ],
    HEADS_NOT_DIVISIBLE: [
      "tensorParallelSize does not fit the base's number of attention heads or key/value heads.",
      "Use one of the values that the message lists.",
    ],
    QUANTIZATION_NEEDS_GPU: [
      "vLLM's CPU build has no kernel for this quantization on this processor.",
      "Write the one that the message names, leave quantization out, take the unquantized weights, or give the engine a GPU.",
    ],
    KV_CACHE_UNSUPPORTED: ["An engine on the CPU does not support this kvCacheDtype.", "Use a type that the message lists."],
    MAX_MODEL_LEN_TOO_HIGH: [
      "maxModelLen is longer than the sequences that the base was made for.",
      "Lower maxModelLen to the number that the message names.",
    ],
    QUANTIZATION_DTYPE: [
      "vLLM cannot compute in float32 with weights that are quantized so.",
      "Leave dtype out, or set bfloat16 or float16.",
    ],
    QUANTIZATION_MISMATCH: [
      "The base's weights are not stored in the way that `quantization` says.",
      "Remove `quantization`: vLLM finds it by itself.",
    ],
    TOOL_PARSER_UNKNOWN: [
      "vLLM has no tool parser of the name that `toolCallParser` gives.",
      "Use one of those that the message lists, `none`, or remove toolCallParser: then the base's chat template decides.",
    ],
    QUANTIZATION_UNKNOWN: ["The base's weights are quantized in a way that vLLM cannot read.", "Choose another base, or convert it."],
  },
);
