/** The settings with which an engine is started. Each kind of engine checks which of them can work: services/serve/src/engines. */
import { z } from "zod";
import { engineRecord, engineWake } from "../engine.ts";

/** The values that vLLM accepts; so for an adapter of rank 24 the value must be 32 or more. */
const engineRanks = [1, 8, 16, 32, 64, 128, 256, 320, 512] as const;

/** The lowest value that serves adapters of this rank; the highest one, where none does. */
export const engineRankFor = (rank: number): number => engineRanks.find((value) => value >= rank) ?? 512;

export const engineSettings = z.strictObject({
  engine: z
    .string()
    .regex(/^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$/, "lower-case letters, digits and dashes, at most 40")
    .describe("Name of the engine."),
  kind: engineRecord.shape.kind,
  base: z
    .string()
    .regex(/^[\w][\w.-]{0,95}$/, "the name of one folder: letters, digits, dots, dashes and underscores")
    .describe("Folder of the base on the volume with the bases; also the name that it is asked for by."),
  derivedFrom: z
    .string()
    .regex(/^[\w][\w.-]{0,95}$/, "the name of one folder: letters, digits, dots, dashes and underscores")
    .optional()
    .describe("Of a quantised base: folder of the unquantised one that it was made of. Adapters of that base are served on this one, too."),
  replicas: z.int().min(0).optional().describe("Copies of the engine; of one with `wake` those that it has when it is awake."),
  wake: engineWake.optional(),
  autoscaled: z.boolean().optional().describe("Whether an autoscaler says how many it has when it is awake."),
  maxLoras: z.int().min(1).describe("Adapters in one batch: slots in the GPU's memory."),
  maxCpuLoras: z.int().min(1).describe("Adapters in the host's memory; at least maxLoras."),
  maxLoraRank: z.literal(engineRanks).describe(`Highest rank of an adapter: ${engineRanks.join(", ")}.`),
  maxModelLen: z.int().min(1).describe("Tokens, prompt and answer together."),
  dtype: z.enum(["auto", "half", "float16", "bfloat16", "float", "float32"]).optional().describe("What the base is computed in."),
  quantization: z
    .string()
    .regex(/^[a-z0-9][a-z0-9_-]*$/)
    .optional()
    .describe(
      "gptq, awq, fp8 for weights that are stored so; fp8_per_channel, fp8_per_tensor and what else vLLM knows to round those that are stored in full. Absent: what the base's files say.",
    ),
  kvCacheDtype: z
    .string()
    .regex(/^[a-z0-9][a-z0-9_]*$/)
    .optional()
    .describe("auto, fp8, fp8_e4m3, fp8_e5m2 and what else vLLM knows. Absent: as vLLM does."),
  prefixCaching: z.boolean().optional().describe("Absent: as vLLM does."),
  tensorParallelSize: z.int().min(1).optional().describe("GPUs that share the base. Absent: 1."),
  gpus: z.int().min(0).optional().describe("GPUs of a replica; 0: an engine on the CPU."),
  toolCallParser: z
    .string()
    .regex(/^[A-Za-z0-9][\w-]*$/)
    .optional()
    .describe(
      "Parser of calls of tools: hermes, llama3_json, mistral and what else vLLM knows. none: tools are refused. Absent: chosen by the base's chat template.",
    ),
  extraArgs: z.array(z.string()).optional().describe("More of vLLM's flags."),
  tenants: engineRecord.shape.tenants,
  tasks: engineRecord.shape.tasks,
  promptLogprobs: engineRecord.shape.promptLogprobs,
  ignore: z
    .array(z.string())
    .optional()
    .describe("Codes of this check's refusals that are known to be wrong for this engine, such as of a newer vLLM."),
});
export type EngineSettings = z.infer<typeof engineSettings>;

/** The list of engines that the chart gives to serve and to engines: the file in `ENGINES_CONFIG`. */
export const engineSettingsList = z.array(engineSettings);
