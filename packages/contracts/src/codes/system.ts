/** Codes about what everything runs on: NATS, objects, Kubernetes, programs and their environment, the command line. */
import { defineArea } from "./define-area.ts";

export const busCodes = defineArea(
  { title: "NATS and the object store", where: "packages/bus, packages/objects", audience: "operator" },
  {
    NATS_UNREACHABLE: ["NATS does not answer.", "Check that it runs, and NATS_URL."],
    NATS_UNAUTHORIZED: ["NATS refuses the credentials.", "Check NATS_USER, NATS_PASS or NATS_TOKEN."],
    BUS_UNAVAILABLE: ["NATS does not answer, or not completely.", "Wait: work goes on by itself when it is back."],
    STREAMS_MISSING: ["Streams or consumers are not there.", "Run `loraline ensure-streams`."],
    BUCKET_MISSING: ["A KV bucket is not there.", "Run `loraline ensure-streams`."],
    STORE_FULL: ["NATS or the object store has no room left.", "Free disk space, or raise its limit."],
    STORE_UNAVAILABLE: ["The object store does not answer.", "Wait: work goes on by itself when it is back."],
    STORE_REFUSED: ["The object store refuses the credentials.", "Correct them as the message says."],
    STOPPED: ["The program was asked to stop while it waited.", "Nothing has to be done."],
    MAX_DELIVERIES: ["A message was tried as often as allowed and failed each time.", "Mend the cause, then `loraline dlq redrive`."],
    NO_HANDLER: ["A consumer got an event that it has no handler for.", "Add the handler.", "developer"],
    LETTER_UNKNOWN: ["There is no such failed message.", "List them with `loraline dlq ls`."],
    LETTER_TOO_LARGE: [
      "A failed message is larger than any message may be, so it would fail again.",
      "Make it smaller and publish it anew.",
    ],
    EVENT_TOO_LARGE: ["An event is larger than is read.", "Put data into the object store, and name its digest in the event."],
    STATE_TOO_LARGE: ["A KV entry would be larger than NATS takes.", "Look at the failed message with `loraline dlq show`."],
    CONTRACT_VIOLATION: [
      "An event does not match its schema, or its subject names none.",
      "Compare it with docs/asyncapi.json.",
      "developer",
    ],
    STATE_INVALID: ["A KV entry does not match its schema.", "Delete the entry: it is made again from the streams.", "developer"],
    RUN_NOT_FOLDED: ["Progress of a run came before its request was read.", "Wait: it is read again.", "developer"],
    UNKNOWN: ["A handler failed in a way that has no code of its own.", "Look at the service's log.", "developer"],
    OBJECT_MISSING: ["An object was deleted, or never completely written.", "Make it again."],
    OBJECT_CORRUPT: ["An object's bytes are not what its digest says.", "Delete it and store it again."],
    OBJECT_INVALID: ["An object cannot be read as what it should be.", "Make it again.", "developer"],
    DIGEST_MISMATCH: ["Content that was to be stored is not what its digest says.", "Send it again."],
    BAD_TENANT: ["What was given is no tenant's name.", "Use lowercase letters, digits and dashes.", "developer"],
    BAD_REFERENCE: ["A reference to an object is of no known kind.", "Use a reference as the API gave it.", "developer"],
  },
);

export const programCodes = defineArea(
  {
    title: "Programs and their environment",
    where: "packages/runtime, packages/local, packages/kube, every service's main.ts",
    audience: "operator",
  },
  {
    ENV_INVALID: ["Environment variables are missing or wrong.", "Correct those that the message lists."],
    SETTING_MISSING: ["A setting that another one needs is missing.", "Set the variable that the message names."],
    ADDRESS_UNUSABLE: ["The address to listen on cannot be used.", "Choose another host or port."],
    PORT_TAKEN: ["Another program listens on the port.", "Stop it, or choose another port."],
    COMMAND_NOT_FOUND: ["A program, or the folder to start it in, is not there.", "Install it, or correct its path."],
    DISK_FULL: ["The disk is full.", "Free space and try again."],
    INTERNAL: ["Something failed that the code does not foresee.", "Look at the log, and report it.", "developer"],
    KUBERNETES_UNREACHABLE: ["The Kubernetes API does not answer.", "Wait, or look at the cluster."],
    NATS_MISSING: ["nats-server is not there, or no NATS was named.", "Run `make setup`, or give --nats.", "user"],
    NATS_NOT_STARTED: ["nats-server ended at once.", "Look at its log.", "user"],
    PYTHON_MISSING: ["The Python environment is not there.", "Run `make setup`, or set LORALINE_PYTHON.", "user"],
    LINE_RUNNING: [
      "Servers already run on this state directory.",
      "Use them, stop them, or choose another directory with --state.",
      "user",
    ],
    STATE_DIR_UNUSABLE: ["The state directory cannot be used.", "Choose another one with --state.", "user"],
    TENANT_INVALID: ["What was given is no tenant's name.", "Use lowercase letters, digits and dashes.", "user"],
  },
);

export const operatorCodes = defineArea(
  { title: "Kubernetes resources", where: "services/operator", audience: "user" },
  {
    CONFIGMAP_UNKNOWN: ["The ConfigMap that holds the data is not there.", "Create it: it is waited for."],
    CONFIGMAP_KEY_UNKNOWN: ["The ConfigMap has no such key.", "Add the key: it is waited for."],
    CONFIGMAP_EMPTY: ["The ConfigMap's key is empty.", "Put at least one training example there."],
  },
);

export const commandCodes = defineArea(
  { title: "The command line", where: "packages/cli, packages/local", audience: "user" },
  {
    NO_LINE: ["No servers run on this state directory.", "Start them with `loraline up`, or give --url and --key."],
    API_KEY_MISSING: ["No API key was given.", "Give one with --key or LORALINE_API_KEY."],
    UNREACHABLE: ["The API does not answer.", "Check --url, and that the servers run."],
    UNEXPECTED_ANSWER: ["The server answers in another shape than this version expects.", "Use the same version on both sides."],
    HTTP_ERROR: ["The server answers with an error that has no code.", "Read the message."],
    INTERRUPTED: ["The command was interrupted; the servers go on with the work.", "Look again with the command that the message names."],
    FILE_UNREADABLE: ["A file cannot be read.", "Check its path and its rights."],
    FILE_MISSING: ["A file is not there.", "Check its path."],
    RUN_FILE_UNREADABLE: ["The run file cannot be read.", "Check its path."],
    RUN_FILE_INVALID: ["The run file has a wrong or unknown field.", "Correct the line and field that the message names."],
    MAPPING_UNREADABLE: ["The mapping file cannot be read.", "Check its path."],
    MAPPING_INVALID: ["The mapping has a wrong or unknown field.", "Correct the line and field that the message names."],
    SOURCE_INVALID: ["The source is neither a URL nor a name on the hub.", "Give one of the two."],
    NAME_MISSING: ["The adapter's name cannot be taken from its source.", "Give --name."],
    VERSION_MISSING: ["The command needs a version.", "Write ADAPTER@VERSION."],
    PLACEMENT_MISSING: ["The command needs to know where to.", "Give --all, --spread or --pin."],
    CANARY_MISSING: ["Settings of a canary are given without --canary.", "Give --canary too."],
    CODE_UNKNOWN: ["There is no such code.", "Use one of docs/errors.md."],
    PROMPT_EMPTY: ["The prompt is empty.", "Give one as an argument or on standard input."],
    NOTHING_TO_TOKENIZE: ["The file holds nothing that can be tokenized.", "Correct what the message says."],
    OUT_NOT_EMPTY: ["The output folder holds other files.", "Name an empty or a new folder."],
    TOKENS_MISSING: ["The folder holds no tokens, or not all of them.", "Make it with `loraline tokenize`."],
    TOKENIZER_DIFFERS: ["The tokenizer is not the one the tokens were made with.", "Name its folder with --base."],
    ROW_UNKNOWN: ["There is no such row.", "Use a row that the message allows."],
  },
);
