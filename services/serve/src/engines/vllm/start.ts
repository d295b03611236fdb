/** How vLLM has to be started for Loraline: the flags and environment variables that do not depend on the machine. */
import type { ComputeType } from "@loraline/contracts";
import type { PictureFamily, ServedParts } from "@loraline/models";

interface VllmStart {
  /** Folder of the base. */
  model: string;
  /** What the base is asked for by. */
  servedName: string;
  host: string;
  port: number;
  maxLoraRank: number;
  maxLoras: number;
  maxCpuLoras: number;
  /** Tokens, prompt and answer together. */
  maxModelLen: number;
  /** The chat template to apply; absent: what the base's folder has. */
  chatTemplateFile?: string | null | undefined;
  /** Finds calls of tools in answers; absent: requests with tools are refused. */
  toolCallParser?: string | null | undefined;
  /** Absent: the whole base, and adapters may have every module. */
  parts?: ServedParts;
}

export const vllmArgs = (start: VllmStart): string[] => [
  `--model=${start.model}`,
  `--served-model-name=${start.servedName}`,
  `--host=${start.host}`,
  `--port=${start.port}`,
  ...(start.chatTemplateFile ? [`--chat-template=${start.chatTemplateFile}`] : []),
  ...(start.toolCallParser ? ["--enable-auto-tool-choice", `--tool-call-parser=${start.toolCallParser}`] : []),
  ...(start.parts?.languageModelOnly === true ? ["--language-model-only"] : []),
  ...Object.entries(start.parts ? pictureFlags(start.parts) : {}).flatMap(([flag, value]) =>
    Array.isArray(value) ? [`--${flag}`, ...value.map(String)] : [`--${flag}=${JSON.stringify(value)}`],
  ),
  ...(start.parts?.loraModules ? ["--lora-target-modules", ...start.parts.loraModules] : []),
  "--enable-lora",
  `--max-lora-rank=${start.maxLoraRank}`,
  `--max-loras=${start.maxLoras}`,
  `--max-cpu-loras=${start.maxCpuLoras}`,
  `--max-model-len=${start.maxModelLen}`,
];

/**
 * Flags, without dashes, of an engine that takes pictures. It fetches none: a request that names an address could make it ask servers that only it
 * can reach, so only those of a domain that cannot exist are allowed. It keeps none from one request for the next, or the time of an answer
 * would tell a tenant which pictures others had sent, and whoever knows a picture's `uuid` could ask about it.
 */
export const pictureFlags = ({ pictures, pictureFamily }: Pick<ServedParts, "pictures" | "pictureFamily">): Record<string, unknown> =>
  pictureFamily === null
    ? {}
    : {
        "limit-mm-per-prompt": { image: pictures, video: 0 },
        "allowed-media-domains": [noDomain],
        "mm-processor-cache-gb": 0,
        ...flagsOfFamily[pictureFamily],
      };
const noDomain = "pictures.invalid";
const flagsOfFamily: Partial<Record<PictureFamily, Record<string, unknown>>> = {
  // InternVL's processor cuts every picture into tiles, but most bases' files say that it does not. vLLM believes the files when it reserves
  // memory, so that it would refuse pictures of many tiles.
  internvl: { "mm-processor-kwargs": { crop_to_patches: true } },
};

/** Flags of an engine on a CPU that shares its machine with training. */
export const vllmCpuArgs = (computeType: ComputeType): string[] => [
  "--max-num-seqs=16",
  `--dtype=${computeType}`,
  "--enforce-eager",
  // One process less: the model runs in the engine process, not in a worker of it.
  "--distributed-executor-backend=uni",
];

export const vllmEnv = {
  // Without it there are no routes to load adapters.
  VLLM_ALLOW_RUNTIME_LORA_UPDATING: "True",
  VLLM_NO_USAGE_STATS: "1",
  HF_HUB_OFFLINE: "1",
  // A small file may hold a picture that takes gigabytes when it is unpacked.
  VLLM_MAX_IMAGE_PIXELS: "50000000",
  // On a processor with AMX its kernels for GPTQ and AWQ would also round what comes in, to 8 bits, and answer otherwise than the base trained.
  VLLM_CPU_INT4_W4A8: "0",
} as const;

export const vllmCpuEnv = {
  VLLM_CPU_OMP_THREADS_BIND: "nobind",
  VLLM_CPU_KVCACHE_SPACE: "1",
  // With `uni` above: keeps the model in the engine process; and engine.py forks that process.
  VLLM_ENABLE_V1_MULTIPROCESSING: "0",
  // The first request for logprobs would compile a kernel: half a minute, and a C++ compiler that a new machine may not have.
  TORCHDYNAMO_DISABLE: "1",
} as const;
