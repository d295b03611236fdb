/** Codes about what everything runs on: NATS, objects, Kubernetes, programs and their environment, the command line. */
import { defineArea } from "./define-area.ts";

export const busCodes = defineArea(
  {
    title: "NATS and the object store",
    where: "any server that uses NATS or the object store",
    sources: "packages/bus, packages/objects, packages/runtime, services/gateway",
    audience: "operator",
  },
  {
    NATS_UNREACHABLE: ["NATS cannot be reached at the address in NATS_URL.", "Check that NATS runs, and that NATS_URL is right."],
    NATS_UNAUTHORIZED: [
      "NATS refuses the credentials.",
      "Check NATS_USER and NATS_PASS, NATS_TOKEN, NATS_CREDS_FILE or NATS_NKEY, whichever the server takes. An attempt of a run is tried again until they are right.",
    ],
    BUS_UNAVAILABLE: ["NATS does not answer, or answered with only a part.", "Wait: the work goes on by itself when NATS is back."],
    STREAMS_MISSING: ["A NATS stream or consumer that the program needs does not exist.", "Run `loraline ensure-streams`."],
    BUCKET_MISSING: ["A NATS KV bucket that the program needs does not exist.", "Run `loraline ensure-streams`."],
    STORE_FULL: ["NATS or the object store has no room left.", "Free disk space, or raise the limit of NATS or of the object store."],
    STORE_UNAVAILABLE: ["The object store does not answer.", "Wait: the work goes on by itself when it is back."],
    STORE_REFUSED: [
      "The object store refuses the server's credentials, or does not let it do what it needs.",
      "Correct the credentials or permissions as the message says.",
    ],
    STOPPED: ["The program was asked to stop while it was waiting for NATS.", "Nothing has to be done."],
    MAX_DELIVERIES: [
      "A message was tried as often as allowed and failed each time, so it was put aside as a failed message.",
      "Mend the cause that the message names, then send it again with `loraline dlq redrive`.",
    ],
    NO_HANDLER: [
      "A service received an event of a type for which it has no code.",
      "Update the service to the version that publishes the event; otherwise add the handler.",
      "developer",
    ],
    LETTER_UNKNOWN: ["There is no failed message with this number.", "List the failed messages with `loraline dlq ls`."],
    LETTER_TOO_LARGE: [
      "The failed message is larger than a message may be, or its stream has it no more, so it cannot be sent again.",
      "Publish a smaller message instead.",
    ],
    EVENT_TOO_LARGE: [
      "An event is larger than the services read.",
      "Store its data in the object store, and put only the digest into the event.",
      "developer",
    ],
    STATE_TOO_LARGE: [
      "A KV entry would be larger than NATS accepts, so the event that changed it failed.",
      "Look at the failed message with `loraline dlq show`; mostly it holds something too large that was stored by an older version.",
    ],
    CONTRACT_VIOLATION: [
      "An event does not match its schema, or its subject is not the subject of any event.",
      "Correct the program that publishes it by docs/asyncapi.json.",
      "developer",
    ],
    STATE_INVALID: [
      "A KV entry does not match its schema: it was written by hand or by a version that does not fit.",
      "Run all services in the same version; report it if it happens again.",
      "developer",
    ],
    NOT_FOLDED: [
      "The projector is behind, so the collector does not know yet what is needed.",
      "Wait: it is tried again. If it lasts, look whether a gateway runs.",
      "operator",
    ],
    RUN_NOT_FOLDED: ["Progress of a run arrived before the request of that run was processed.", "Wait: it is read again.", "developer"],
    UNKNOWN: ["Work failed for a reason that has no code of its own, and is tried again.", "Look at the service's log.", "developer"],
    OBJECT_MISSING: [
      "An object is not in the object store: it was deleted, or never completely written.",
      "Upload or make again what the message names; if you gave an adapter by its digest, check the digest and the tenant.",
    ],
    OBJECT_CORRUPT: [
      "The bytes of an object in the object store do not match its digest.",
      "Delete the object that the message names, and store it again.",
    ],
    OBJECT_INVALID: [
      "An object in the store can be fetched, but does not have the expected content or size.",
      "Delete it, and do again what made it; report it if it happens again.",
      "developer",
    ],
    DIGEST_MISMATCH: ["Bytes that were to be stored do not match the digest they came with; nothing was stored.", "Send them again."],
    BAD_TENANT: ["A program used a text as a tenant's name that cannot be one.", "Use lowercase letters, digits and dashes.", "developer"],
    BAD_REFERENCE: [
      "A program used a reference to an object whose kind or digest is not valid.",
      "Use a reference as an API answer or an event gave it.",
      "developer",
    ],
  },
);

export const programCodes = defineArea(
  {
    title: "Programs and their environment",
    where: "any program, mostly when it starts",
    sources: "packages/runtime, packages/local, packages/kube, packages/cli, every service's main.ts",
    audience: "operator",
  },
  {
    ENV_INVALID: ["Environment variables are missing or wrong.", "Correct those that the message lists."],
    SETTING_INVALID: ["An environment variable has a value that cannot be used.", "Correct the value as the message says."],
    SETTING_MISSING: ["One environment variable is set, and another that it needs is not.", "Set the variable that the message names."],
    ADDRESS_UNUSABLE: ["The program cannot listen on the host and port that it was given.", "Choose a host and port of this machine."],
    PORT_TAKEN: ["Another program listens on the port.", "Stop it, or choose another port."],
    COMMAND_NOT_FOUND: [
      "A program that has to be started is not installed or may not be run, or the folder to start it in is not there.",
      "Install it (`make setup` on one machine), or correct its path.",
    ],
    DISK_FULL: ["The disk is full.", "Free space and try again."],
    INTERNAL: ["Something failed in a way that the program does not expect.", "Look at the log, and report it.", "developer"],
    KUBERNETES_UNREACHABLE: ["The Kubernetes API server does not answer.", "Wait: it is tried again; or look at the cluster."],
    NATS_MISSING: [
      "The program nats-server is not installed; or `keys --tenant` was used without --nats.",
      "Run `make setup`; with --tenant, give --nats too.",
      "user",
    ],
    NATS_NOT_STARTED: ["nats-server was started and does not run.", "Look at its log, which the message names.", "user"],
    PYTHON_MISSING: [
      "The Python environment of the trainer is not there.",
      "Run `make setup`, or set LORALINE_PYTHON to a Python that has the trainer's packages.",
      "user",
    ],
    NOT_STOPPED: ["The server on this machine does not end.", "End it with `loraline stop --now`; nothing stored is lost.", "user"],
    STATE_EMPTY: ["No server ever ran on this state directory.", "Name the right one with --state.", "user"],
    STATE_NOT_EMPTY: [
      "A backup is to be restored into a directory that holds something.",
      "Move what is there away, or name another directory with --state.",
      "user",
    ],
    BACKUP_EXISTS: ["There is a file of this name already.", "Give the backup another name.", "user"],
    BACKUP_NAME_INVALID: ["The name of a backup says how it is packed.", "Let it end in .tar or .tar.gz.", "user"],
    BACKUP_NOT_WRITTEN: ["The backup could not be written; nothing is left of it.", "Make room, or choose another place.", "user"],
    BACKUP_INVALID: [
      "The file is no backup, is damaged, or comes from a newer release.",
      "Take another backup, or the release that the backup names.",
      "user",
    ],
    LINE_RUNNING: [
      "A server already runs on this state directory.",
      "Use it, stop it with `loraline stop`, or choose another directory with --state.",
      "user",
    ],
    STATE_DIR_UNUSABLE: [
      "The state directory cannot be made or written.",
      "Correct its permissions, or choose another one with --state.",
      "user",
    ],
    BOUND_ADMIN: [
      "The key to be made is bound to models and has the scope admin, with which it could make itself another key.",
      "Give --scopes without admin, or no --models.",
      "user",
    ],
    TENANT_INVALID: ["The value of --tenant cannot be a tenant's name.", "Use lowercase letters, digits and dashes.", "user"],
  },
);

export const operatorCodes = defineArea(
  { title: "Kubernetes resources", where: "the status of a FineTune, an Engine or a Base", sources: "services/operator", audience: "user" },
  {
    CONFIGMAP_UNKNOWN: [
      "The ConfigMap that should hold the data does not exist in the namespace.",
      "Create it; the FineTune goes on by itself.",
    ],
    CONFIGMAP_KEY_UNKNOWN: ["The ConfigMap does not have the key that the FineTune names.", "Add the key; the FineTune goes on by itself."],
    CONFIGMAP_EMPTY: [
      "The key of the ConfigMap holds nothing.",
      "Put at least one training example there; the FineTune goes on by itself.",
    ],
    ENGINES_OFF: [
      "The release makes nothing of Engines and Bases.",
      "Set the chart's values bases.volume and operator.engines.enabled, and upgrade the release.",
      "operator",
    ],
    ENGINE_NAME_TAKEN: [
      "The chart's values have an engine of this name.",
      "Make the Engine under another name, or take the engine out of the values.",
      "operator",
    ],
    ENGINE_BASE_TAKEN: [
      "Another engine serves this base to the same tenants, and a run could not tell which of them is meant.",
      "Give the other engine more replicas, or each engine its own tenants.",
      "operator",
    ],
    ENGINE_INVALID: ["Settings of the Engine do not fit together.", "Correct the field that the message names.", "operator"],
    BASE_NOT_READY: [
      "The Job of a Base could not bring it onto the volume, or could not read it there.",
      "The message has its last words. It is tried again, in the end every five minutes.",
      "operator",
    ],
    ENGINE_START_FAILED: [
      "A pod of the Engine ended before it served.",
      "The message has the last words of the container; `kubectl logs` has the rest. What its check says takes another spec.",
      "operator",
    ],
  },
);

export const commandCodes = defineArea(
  {
    title: "The command line",
    where: "the command `loraline`",
    sources: "packages/cli, packages/client, packages/local, packages/tokens",
    audience: "user",
  },
  {
    NO_LINE: [
      "No server runs on this state directory, and no address was given.",
      "Start one with `loraline up`, or give --url and --key.",
    ],
    API_KEY_MISSING: ["No API key was given.", "Give one with --key or LORALINE_API_KEY."],
    NATS_PASSWORD_MISSING: [
      "The state directory has no password of this NATS user, or it cannot be read.",
      "Ask as the owner of the state directory, after the server has been started once.",
    ],
    UNREACHABLE: ["The server does not answer at the address in --url.", "Check the address, and that the server runs."],
    UNEXPECTED_ANSWER: [
      "The server's answer does not have the expected shape.",
      "Check that --url is the address of a Loraline server of the same version.",
    ],
    HTTP_ERROR: [
      "The server, or something between, answered with an error that is not Loraline's.",
      "Read the status and text in the message; check --url, and proxies on the way.",
    ],
    INTERRUPTED: [
      "You stopped the command; the server goes on with the work.",
      "Follow the work with `loraline runs`, `loraline data ls` or `loraline adapters`.",
    ],
    LOG_MISSING: ["There is no log of this name.", "`loraline logs --parts` lists them."],
    BASE_NOT_FOUND: [
      "What names the base is no folder, no base of this machine, and for `bases add` no model of the hub.",
      "Give a folder in Hugging Face's layout, one of the names that the message lists, or for `bases add` organisation/name.",
    ],
    BASE_NAME_INVALID: [
      "The name of a base has characters that it cannot have.",
      "Give another with --name: letters, digits, dots, dashes.",
    ],
    BASE_EXISTS: ["There is a base of this name on this machine already.", "Give another name with --name, or remove its folder."],
    HUB_UNREACHABLE: [
      "A model did not come from the hub: no way there, no such model, or it asks for a token.",
      "Read the reason in the message; set HF_ENDPOINT or HF_TOKEN, or add a folder that was downloaded elsewhere.",
    ],
    FILE_UNREADABLE: [
      "A file that the command was given does not exist, is no file, or cannot be read.",
      "Correct its path, or its permissions.",
    ],
    FILE_MISSING: [
      "The data file that the command was given does not exist, is no file, or cannot be read.",
      "Correct its path, or its permissions.",
    ],
    RUN_FILE_UNREADABLE: ["The run file (run.yaml) does not exist or cannot be read.", "Correct its path, or its permissions."],
    RUN_FILE_INVALID: [
      "The run file (run.yaml) is not valid YAML, or has a wrong or unknown field.",
      "Correct the line and field that the message names.",
    ],
    LINE_FILE_UNREADABLE: ["loraline.yaml does not exist or cannot be read.", "Correct the path in --config, or its permissions."],
    LINE_FILE_INVALID: [
      "loraline.yaml is not valid YAML, or has a wrong or unknown field.",
      "Correct the line and field that the message names.",
    ],
    MAPPING_UNREADABLE: ["The mapping file does not exist or cannot be read.", "Correct its path, or its permissions."],
    MAPPING_INVALID: [
      "The mapping file is not valid YAML, or has a wrong or unknown field.",
      "Correct the line and field that the message names; docs/formats.md lists the fields.",
    ],
    SOURCE_INVALID: [
      "The source of an import is neither a URL nor a dataset's name on the hub.",
      "Give https://host/file or organisation/name.",
    ],
    NAME_MISSING: ["No adapter name can be derived from the name of the source.", "Give a name with --name."],
    CHECKPOINT_UNKNOWN: [
      "The adapter's runs have no checkpoint of this step.",
      "Take a step that the message names; training.save_steps and training.save_total_limit say which are made and kept.",
    ],
    VERSION_MISSING: ["The command needs the version of an adapter.", "Write it as ADAPTER@VERSION."],
    NOT_CONFIRMED: ["The command deletes much, for good, and was not confirmed.", "Say --yes to do it."],
    PLACEMENT_MISSING: ["The command was not told on which replicas to place the adapter.", "Give --all, --spread or --pin."],
    LIMIT_MISSING: ["`limits set` was given nothing to set.", "Say what to limit, such as --requests 60; `none` lifts a limit."],
    CANARY_MISSING: ["Options of a canary are given without --canary.", "Add --canary, or remove the options."],
    CODE_UNKNOWN: ["There is no error code of this name.", "Copy the code from the message; docs/errors.md lists all."],
    PROMPT_EMPTY: ["The prompt is empty.", "Give one as an argument or on standard input."],
    NOTHING_TO_TOKENIZE: ["The file has no row that can be tokenized.", "Correct what the message says of the first row."],
    OUT_NOT_EMPTY: ["The folder that a command shall write into holds files that it did not write.", "Name an empty or a new folder."],
    MERGE_FAILED: [
      "The program that merges an adapter into its base ended without a result.",
      "See the message; run `make setup`, and merge on a machine with memory for the base in float32.",
    ],
    DOWNLOAD_BROKEN: ["A downloaded file is not the one that the server has.", "Ask again; if it stays so, tell the operator."],
    TOKENS_MISSING: [
      "The folder does not hold complete output of `loraline tokenize`.",
      "Make it with `loraline tokenize FILE --base DIR --out FOLDER`.",
    ],
    TOKENIZER_DIFFERS: [
      "The base's tokenizer.json is not the one that the tokens were made with.",
      "Give the folder of the right base with --base.",
    ],
    ROW_UNKNOWN: ["The number of the row is higher than the folder's last row.", "Use a row from the range that the message names."],
  },
);
