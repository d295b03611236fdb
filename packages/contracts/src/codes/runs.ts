/** Codes about runs before and while they train: the request, the tokens, the attempts. */
import { defineArea } from "./define-area.ts";

export const specCodes = defineArea(
  {
    title: "The request of a run",
    where: "checking the request of a run, when it is made and again by the services that carry it out",
    sources: "packages/contracts, packages/models, packages/bus, services/gateway, services/tokenize, services/serve, services/train",
    audience: "user",
  },
  {
    SPEC_INVALID: [
      "A field of the request is unknown, missing or has a wrong value.",
      "Correct the field that the message names; docs/run-spec.md lists all.",
    ],
    LORA_FIELD_REFUSED: [
      "A field of PEFT's LoraConfig is set that does not work here.",
      "Remove the field; the message says why it is refused.",
    ],
    TRAINING_FIELD_REFUSED: [
      "A field of transformers' TrainingArguments or trl's SFTConfig is set that does not work here.",
      "Remove the field; the message says why it is refused.",
    ],
    RUN_EXISTS: ["A run of this id was requested before, with another spec, which counts.", "Request the run again with a new ULID."],
    RUN_OVER: ["The run has ended, so the command changes nothing.", "Nothing has to be done; to train again, request a new run."],
    BASE_UNKNOWN: ["No engine serves this base.", "Use one of the bases that the message lists, or ask the operator to serve this one."],
    BASE_UNAVAILABLE: [
      "An engine for this base is set up, but the base's files cannot be read now.",
      "Wait, or tell the operator what the message says.",
    ],
    BASE_MISMATCH: [
      "The base's files on the training node are not those that the run was tokenized for; or, for `adapters pull --merged`, not those that the adapter was trained on.",
      "Request the run again, or name the base's folder with --base-dir; if it happens again, the nodes hold different files of this base, which the operator has to mend.",
    ],
    CANARY_UNUSED: ["The request sets `canary`, but its `promote` does not use one.", "Set `promote: canary`, or remove `canary`."],
    SETTING_NOT_FOR_METHOD: [
      "A setting of supervised runs is given together with a method that learns from preferences, where it would do nothing or harm.",
      "Remove the field that the message names.",
    ],
    RANK_TOO_HIGH: [
      "The rank is higher than the engine of this base can serve.",
      "Lower the field that the message names, or have the engine started for higher ranks: `loraline up --max-lora-rank`, or maxLoraRank in the chart.",
    ],
    MAX_LENGTH_TOO_HIGH: [
      "tokenize.max_length is larger than the sequences that the engine of this base can serve.",
      "Lower it, or have the engine started with a longer context: `loraline up --max-model-len`, or maxModelLen in the chart.",
    ],
    TARGET_MODULES_INVALID: [
      "A pattern of module names is not a valid regular expression.",
      'Give a list of names, a valid expression, or "all-linear".',
    ],
    TARGET_MODULE_UNSUPPORTED: [
      "One of the named modules cannot be trained, or an adapter on it could not be served.",
      "Name only linear modules inside the model; the message lists them.",
    ],
    QUANTIZATION_UNSUPPORTED: [
      "`quantization` was asked for on a base that cannot be held so in training: a multimodal one, a mixture of experts, one that is packed already, or one whose files name weights otherwise.",
      "Remove quantization. Of a GPTQ or AWQ copy train on the base that it was made of: the copy serves that base's adapters.",
    ],
    NO_TARGET_MODULES: [
      "The base has no module of the given names, or none is left after exclude_modules.",
      "Use names that the message lists.",
    ],
    PATTERN_TOO_COSTLY: ["The regular expression could take very long to match.", "Use a list of names, or a simpler expression."],
    PATTERN_UNUSED: [
      "A pattern of rank_pattern or alpha_pattern matches none of the trained modules, so it would have no effect.",
      "Correct the pattern, or remove it.",
    ],
    LAYERS_NEED_NAMES: [
      "layers_to_transform is used without a list of names in target_modules, or layers_pattern without layers_to_transform.",
      "Give target_modules as a list of names, or put the layers into the regular expression.",
    ],
    LAYERS_UNKNOWN: ["layers_to_transform names layers that the base does not have.", "Use layers from the range that the message names."],
    NODES_UNSUPPORTED: [
      "The run asks for several nodes, and this installation trains on one.",
      "Set `nodes: 1`, or have the operator install JobSet and set train.pods.jobSet.",
    ],
    QUOTA_GPUS: [
      "The run asks for more GPUs, on all its nodes together, than a run of this tenant may use.",
      "Ask for fewer, or have the operator raise the quota; `loraline limits list` shows it.",
    ],
    QUOTA_PRIORITY: [
      "The run asks for a higher priority than its tenant may use.",
      "Ask for less, or have the operator raise the quota; `loraline limits list` shows it.",
    ],
    PROFILE_NOT_ALLOWED: [
      "The run asks for a kind of pod that the installation does not have, or does not offer to this tenant or for this base. Or the operator took it away while the run waited.",
      "Ask for one that the message names, or leave `profile` out. The operator offers them in train.pods.profiles.",
    ],
    QUOTA_RUNS_WAITING: [
      "As many runs of the tenant as may wait at once do.",
      "Request the run again when some of them have ended, or have the operator raise the quota.",
    ],
    QUOTA_STORAGE: [
      "The tenant has as many bytes in the object store as it may have, or would have more.",
      "Delete datasets or adapters (`loraline storage` shows what takes the room), or have the operator raise the quota storageBytes.",
    ],
    QUOTA_ADAPTERS: [
      "The run, or a checkpoint that is asked for, would make a new adapter, and the tenant has as many as it may have.",
      "Train a new version of one that exists, delete one, or have the operator raise the quota.",
    ],
  },
);

export const tokenizeCodes = defineArea(
  {
    title: "Tokenizing",
    where: "tokenizing a run's dataset, or `loraline tokenize`; codes about the base also come from the start of an engine",
    sources: "packages/tokens, packages/models, packages/local, services/tokenize, services/serve",
    audience: "user",
  },
  {
    DATASET_UNKNOWN: ["There is no such dataset, or it was deleted.", "Upload it again, or correct its id."],
    DATASET_NOT_READY: ["The dataset is still being read and checked.", "Wait: the run goes on by itself."],
    TOO_FEW_RECORDS: [
      "Fewer records can be trained on than `min_records`.",
      "Add records or lower `min_records`; the message counts what was left out and why.",
    ],
    VALIDATION_EMPTY: [
      "No record of the validation file can be used.",
      "Correct what the message counts, or leave the validation file out.",
    ],
    NO_SUPERVISED_TOKENS: [
      "No token of the dataset would be learned.",
      "Raise `tokenize.max_length` if answers are cut off; otherwise correct what the message counts.",
    ],
    NO_SUPERVISED: [
      "A record is left out because none of its tokens would be learned: its answer is empty, or lies beyond max_length.",
      "Write the answer, shorten the prompt, or raise `tokenize.max_length`.",
    ],
    TOO_LONG: [
      "A record is left out because it has more tokens than max_length, or a conversation has too many messages.",
      "Raise `tokenize.max_length`, set `tokenize.too_long`, or split the record.",
    ],
    PROMPT_TRIMMED: [
      "Earlier parts of a record's prompt were left out, so that the rest fits into max_length.",
      "Raise `tokenize.max_length` to keep all of it.",
    ],
    TEXT_SPLIT: ["A text longer than max_length was split into several sequences.", "Nothing has to be done."],
    EXACT_DUPLICATE: [
      "A record is left out because it says exactly the same as an earlier one.",
      "Nothing has to be done; `dedupe: none` keeps it.",
    ],
    NEAR_DUPLICATE: [
      "A record is left out because it says nearly the same as an earlier one.",
      "Nothing has to be done; `dedupe: exact` keeps it.",
    ],
    KIND_NOT_TRAINED: [
      "A record is left out because the run's method cannot train its kind: a preference with `supervised`, or a single answer with `dpo`.",
      "Set `method` to one that trains it (pairs and ranked lists: `dpo`, `orpo`, `simpo`; labelled answers: `kto`; single answers: `supervised`), or give other rows.",
    ],
    RANKING_UNKNOWN: [
      "A record is left out because it lists several answers without saying which is better, or all of them are equally good.",
      "Give `scores` (higher is better) or `ranks` (1 is best) beside `responses`, or a `preferred_response`.",
    ],
    SIDES_ALIKE: ["A pair is left out because both of its sides are the same tokens.", "Give two answers that differ."],
    SIDE_IN_PARTS: [
      "A pair is left out because the base's template shows one of its answers as several texts: it removes thoughts from earlier turns.",
      "Compare the last answer only, and put the turns before it into the prompt.",
    ],
    PROMPT_HELD_OUT_TOO: [
      "A pair is trained on although its question was held out with another pair; what is measured is then a little too good.",
      "Put all answers to a question into one row, or give a validation file with other questions.",
    ],
    INIT_FROM_UNKNOWN: [
      "`init_from` names an adapter or a version that does not exist, was refused or deleted, or whose adapter has no promoted version.",
      "Name one that `loraline adapters` shows, such as `pirate@3`.",
    ],
    INIT_FROM_MISMATCH: [
      "The version that `init_from` names was made for another base, or has a higher rank than the run.",
      "Use its base, and set `lora.r` at least to its rank.",
    ],
    BASE_CANNOT_SEE: [
      "A record is left out because it shows an image, and the base reads text only, or writes pictures in a way that Loraline does not know.",
      "Use rows of text only.",
    ],
    PICTURE_NOT_FETCHED: [
      "A record is left out because its picture was not fetched: it was read by an older version, or by `data check`, which fetches nothing.",
      "Upload the dataset again.",
    ],
    TEMPLATE_HIDES_PICTURES: [
      "A record is left out because the base's chat template does not show its pictures, so that the model would not see them.",
      "Use a base whose chat template shows pictures.",
    ],
    PICTURE_IN_ANSWER: [
      "A record is left out because an answer that is trained shows a picture, and models here write text.",
      "Put the picture into the question, or set `train: false` for that turn.",
    ],
    SEED_UNSUITABLE: [
      "A record is left out because the template `seed` trains one question and one answer, and the record is something else.",
      "Set `tokenize.template: base`.",
    ],
    IDS_INVALID: [
      "A record of token ids is left out because an id is not in the base's vocabulary, or its labels do not fit its ids.",
      "Make the ids with this base's tokenizer; give each id one label, -100 or the id itself.",
    ],
    ANSWER_JOINS_PROMPT: [
      "Tokenized as one text, the end of the prompt and the start of the answer would share a token; they are tokenized apart, as the model writes them.",
      "Nothing has to be done.",
    ],
    TOOLS_UNSUPPORTED: [
      "The base's chat template does not show tool calls, so the model could not learn them.",
      "Remove the tool calls from the rows, or use a base whose template shows them.",
    ],
    TOOLS_LEFT_OUT: [
      "The base's chat template has no place for tools, so the model does not see them.",
      "Use a base whose template shows tools, if they matter.",
    ],
    REASONING_LEFT_OUT: [
      "The base's chat template has no place for an answer's reasoning, so it is not trained.",
      "Use a base whose template shows reasoning, if it matters.",
    ],
    TEMPLATE_REFUSES: [
      "The base's chat template refuses the conversation.",
      "Change the conversation as the message says; often the roles must alternate, or no system message is allowed.",
    ],
    TEMPLATE_UNSAFE: [
      "The base's chat template renders the conversation so that the place of the answers in it is not certain, so they cannot be trained safely.",
      "Use another base, or conversations with one answer each.",
    ],
    TEMPLATE_MISSING: [
      "The base has no chat template, so it cannot be trained on conversations.",
      "Use rows with prompt and completion, or a base that has a chat template.",
    ],
    TEMPLATE_UNSUPPORTED: [
      "The base's chat template does something that training does not support.",
      "Use another base, or have the operator replace the template as the message says.",
      "operator",
    ],
    TEMPLATE_MISMATCH: [
      "The engine applies another chat template or tokenizer than training does, so the adapter would see prompts it never learned.",
      "Start the engine with --chat-template and the base's own file; a version that was trained with another template has to be trained again.",
      "operator",
    ],
    TOKENIZER_INVALID: [
      "The base's tokenizer.json cannot be loaded.",
      "Replace it by the file that was published with the base.",
      "operator",
    ],
    BASE_FILES_MISSING: ["The folder of the base lacks files.", "Put the base's files into the folder that the message names.", "operator"],
    BASE_MISSING: [
      "The base's folder or its config.json is not there; or a command was given no base.",
      "Put the base's files where the message says; on the command line name the base with --base.",
      "operator",
    ],
    BASE_INVALID: [
      "The base's config.json or its description (base.json) cannot be read, or contradicts the folder's name.",
      "Correct or remove the file that the message names.",
      "operator",
    ],
    PAD_TOKEN_MISSING: ["The base's tokenizer names no padding token.", "Set pad_token in the base's tokenizer_config.json.", "operator"],
    EOS_TOKEN_MISSING: [
      "The base's tokenizer names no token that ends an answer.",
      "Set eos_token in the base's tokenizer_config.json.",
      "operator",
    ],
    CHUNKS_GONE: [
      "Another run with the same tokens has finished and removed intermediate results that this run was using.",
      "Wait: the run takes the finished tokens, or makes them again.",
    ],
    OTHER_BASE: [
      "This replica of the tokenizer has another version of the code, or other files of the base, than the one that asked for the work.",
      "Wait while an update is under way; afterwards all replicas must have the same base files.",
      "operator",
    ],
  },
);

export const attemptCodes = defineArea(
  {
    title: "Attempts to train",
    where: "the train service, while an attempt of a run waits, runs or ends",
    sources: "services/train (controller, launchers, courier)",
    audience: "operator",
  },
  {
    TENANT_QUOTA: [
      "The tenant's runs use as many places or GPUs as its quota allows; the message says which quota, and the run's place.",
      "Wait, or have the operator raise the quota; `loraline limits list` shows it.",
    ],
    GPUS_TOO_MANY: [
      "The run asks for more GPUs than this installation trains on at all.",
      "Request it again with fewer `gpus` or `nodes`, or have the operator raise train.pods.gpusTotal.",
      "user",
    ],
    WAITING_FOR_DEVICE: ["No GPU or training slot is free.", "Wait, or add devices."],
    SUSPENDED: ["The attempt waits in Kueue's queue, or its Job was suspended.", "Wait, or look at the queue, which the message names."],
    SCHEDULING_GATED: [
      "The pod has a scheduling gate, so Kubernetes does not place it on a node.",
      "Wait for the program that set the gate, or remove the gate.",
    ],
    UNSCHEDULABLE: [
      "No node can take the pod; the message has Kubernetes' reasons.",
      "Add nodes, or correct the chart's train.pods values.",
    ],
    VOLUME: [
      "A volume of the pod is not there or cannot be mounted.",
      "Look at the PersistentVolumeClaim and at the storage that the message names.",
    ],
    IMAGE: [
      "The image of one of the pod's containers cannot be pulled.",
      "Correct the image's name in the chart's values, or the secret for its registry.",
    ],
    POD_CONFIG: [
      "A container of the pod cannot be started, or fails each time it starts.",
      "Correct what the message names, mostly one of the chart's train.pods values.",
    ],
    POD_REFUSED: ["The cluster refuses the pod.", "Correct what the message says."],
    QUOTA: ["The namespace's ResourceQuota is used up.", "Wait until other pods have ended, or raise the quota."],
    NO_POD: ["Kubernetes has made no pod for the Job for a long time.", "Look at the events of the Job and at the cluster's controllers."],
    NOT_RESUMED: ["Kueue admitted the attempt some time ago, but its Job is still suspended.", "Look at the logs of Kueue's controller."],
    STARTING: ["The attempt's pod is being made or started.", "Wait."],
    INIT_FAILED: [
      "A container that runs before training in the attempt's pod failed.",
      "Look at that container's log; the attempt is tried again.",
    ],
    PREEMPTED: [
      "The attempt was asked to stop, because its place or its node was needed.",
      "Wait: training goes on from the newest checkpoint.",
    ],
    EVICTED: [
      "Kubernetes evicted the pod from its node.",
      "Wait: it is tried again. If it repeats, give attempts more memory or disk (train.pods).",
    ],
    NODE_LOST: ["The node of the attempt is gone or does not answer.", "Wait: it is tried again on another node."],
    NODE_REFUSED: ["The node did not accept the pod that was placed on it.", "Wait: it is tried again."],
    JOB_DELETED: ["The attempt's Job was deleted by hand or by another program.", "Wait: it is tried again. To end the run, cancel it."],
    ATTEMPT_LOST: [
      "The attempt's pod or process vanished without leaving a result.",
      "Wait: the next attempt goes on from the newest checkpoint.",
    ],
    ATTEMPTS_EXHAUSTED: [
      "All attempts that a run may make ended without a result, so the run failed.",
      "Mend the reason of the last attempt, which the message has, then request the run again.",
    ],
    DEADLINE_EXCEEDED: [
      "The attempt took longer than train.pods.activeDeadlineSeconds allows.",
      "Nothing, if each attempt gets further than the one before; otherwise raise the limit, or save checkpoints more often (training.save_steps).",
    ],
    CANCELLED: ["The run was cancelled.", "Request it again if that was a mistake.", "user"],
    ATTEMPT_MISSING: [
      "The courier, the program that accompanies an attempt, was started in a folder without an attempt.json.",
      "Do not start it by hand: the train controller starts it.",
      "developer",
    ],
    JOB_INVALID: ["Kubernetes refuses the Job.", "Correct the chart's train values."],
    JOB_FORBIDDEN: ["The train controller is not allowed to create Jobs.", "Give its service account the Role that the chart makes."],
    JOBSET_MISSING: [
      "train.pods.jobSet is set, but JobSet is not installed, or the train controller may not list JobSets.",
      "Install JobSet, then restart the train controller.",
    ],
    JOBSET_UNAVAILABLE: [
      "JobSet's controller does not answer, so no JobSet can be made.",
      "Look at JobSet's controller; it is tried again.",
    ],
    OWNER_MISSING: ["The release's ConfigMap that owns all attempts is gone.", "Install the release again."],
    RUN_ID_TAKEN: ["Another tenant's run has the same id.", "Request the run again under a new ULID.", "user"],
    PICTURE_UNREADABLE: [
      "A picture that was stored for a run cannot be read by the trainer.",
      "Remove the picture from the dataset, and upload it again as PNG or JPEG.",
    ],
    RESUME_INVALID: [
      "The checkpoint to go on from does not fit the run, mostly after an update of the trainer.",
      "Nothing has to be done: training begins again from the start.",
    ],
    RESUME_LOST: ["The checkpoint to go on from could not be fetched.", "Nothing has to be done: training begins again from the start."],
    COURIER_CRASHED: ["The courier, the program that accompanies an attempt, crashed.", "Look at its log; the attempt is tried again."],
    COURIER_FAILED: [
      "The courier, the program that accompanies an attempt, failed for a reason that has no code of its own.",
      "Look at the message and at its log; the attempt is tried again.",
    ],
    SHUTTING_DOWN: [
      "The train controller is shutting down, so it starts no attempt.",
      "Wait: the attempt starts when a controller is back.",
    ],
    TRAINER_MISSING: ["The trainer's program is not where it should be.", "Set LORALINE_TRAINER to its path, or remove the variable."],
    TRAINER_UNREACHABLE: [
      "The trainer's container in the attempt's pod does not answer the courier.",
      "Wait: the attempt is tried again. Look at the log of the container `trainer` if this repeats.",
    ],
    TRAINER_FILE_REFUSED: [
      "The trainer left a file that leads out of its folder, or that is none.",
      "Look at the trainer's log: something other than the trainer may have written there.",
    ],
    TRAINER_HANGS: [
      "The trainer reported no progress for too long and was stopped.",
      "Wait: the attempt is tried again. Look at its log if this repeats.",
    ],
    TRAINER_KILLED: [
      "Something killed the trainer; mostly the machine ran out of memory.",
      "Lower training.per_device_train_batch_size or tokenize.max_length, or set training.gradient_checkpointing.",
      "user",
    ],
    TRAINER_CRASHED: [
      "The trainer ended without a result.",
      "Look at the end of its log, which the message has; the attempt is tried again.",
    ],
  },
);

export const trainerCodes = defineArea(
  {
    title: "The trainer",
    where: "the program that trains a run",
    sources: "services/train/trainer (Python), services/train (courier), services/serve (setup)",
    audience: "user",
  },
  {
    OUT_OF_MEMORY: [
      "The GPU or the machine has too little memory for this training.",
      "Lower training.per_device_train_batch_size or tokenize.max_length, set training.gradient_checkpointing, or have the operator raise train.pods.memory.",
    ],
    DEVICE_MISSING: [
      "A GPU was asked for, and the trainer finds none.",
      "Check the node's GPU driver, and that the container gets the device.",
      "operator",
    ],
    BASE_UNREADABLE: [
      "The base's weights or configuration cannot be loaded.",
      "Put the files that were published with the base into its folder.",
      "operator",
    ],
    NON_FINITE_LOSS: [
      "The loss became infinite or not a number (NaN), so training cannot go on.",
      "Lower training.learning_rate or training.max_grad_norm, or add training.warmup_steps.",
    ],
    MERGE_BASE_QUANTISED: [
      "The base's weights are quantised, and cannot take up an adapter.",
      "Serve the adapter beside the base, or merge it into the base that the quantised one was made of.",
    ],
    MERGE_DISAGREES: [
      "The merged model does not answer as base and adapter do: rounding takes too much of what the adapter does.",
      "Serve the adapter beside the base.",
    ],
    ADAPTER_INVALID: [
      "The trained adapter cannot be used: its weights are not finite, or training changed nothing.",
      "Check training.learning_rate as the message says, and the dataset.",
    ],
    ATTENTION_UNSUPPORTED: [
      "The base's attention has something that the trainer does not have; without it, it would be trained as another model.",
      "Choose another base.",
    ],
    PACKING_SELF_TEST_FAILED: [
      "With this base, examples that are packed into one sequence would influence each other.",
      "Set tokenize.packing: false and training.per_device_train_batch_size: 1.",
    ],
    SHARD_INVALID: ["A file of tokens that the trainer got cannot be read.", "Request the run again; report it if it happens again."],
    ROWS_WITHOUT_LABELS: ["Rows are left out because they have no token to learn.", "Nothing has to be done."],
    EXPERTS_NOT_ADAPTED: [
      "The base is a mixture of experts, and the adapter reaches its other modules only.",
      "Nothing has to be done: such an adapter is served. What it reaches stands in the message.",
    ],
    CHECKPOINT_NOT_SERVABLE: [
      "The adapter of a checkpoint does nothing yet, or its values are not finite, so that nobody can ask it.",
      "Nothing has to be done: training goes on, and later checkpoints can be asked.",
    ],
    CHECKPOINT_IGNORED: [
      "A checkpoint on disk is incomplete and is not used.",
      "Nothing has to be done: training goes on from the one before.",
    ],
  },
);
