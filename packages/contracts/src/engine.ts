/** The record of an engine in KV `engines`: what it can serve. */
import { z } from "zod";
import { defaultEngineKind, engineKindName } from "./engine-kinds.ts";
import { longestTemplate, templateProbe } from "./chat-template.ts";
import { type Digest, digest, isoTime, problem, tenantName } from "./names.ts";

export const baseRef = z.object({
  name: z.string(),
  revision: z.string(),
  digest,
});
export type BaseRef = z.infer<typeof baseRef>;

/** Where a base's files come from, as `origin` of its base.json says. Nothing is decided by it; it is told to people and to other programs. */
export const baseOrigin = z.object({
  hub: z
    .string()
    .regex(/^[\w-][\w.-]*\/[\w-][\w.-]*$/)
    .nullish()
    .describe("Name on the hub of the model whose weights these are, or nearly are: `organisation/name`."),
  revision: z.string().min(1).max(200).nullish().describe("Branch, tag or commit of it. Absent: not known."),
  made: z.string().max(2000).nullish().describe("How the files were made of the hub's, if they are not the same."),
});
export type BaseOrigin = z.infer<typeof baseOrigin>;

/**
 * The base whose weights a quantised one's are, rounded. The two, and all that derive from one, are twins: an adapter of the original is served
 * on its twins, too.
 */
export const derivedFrom = z.object({ name: z.string(), digest }).describe("The unquantised base, whose twin this one is.");
export type DerivedFrom = z.infer<typeof derivedFrom>;

/** The number format of a computation. Adapters are published in bf16 whatever they were trained in. */
export const computeType = z.enum(["bfloat16", "float32"]);
export type ComputeType = z.infer<typeof computeType>;

/** Takes the place of a base's digest until the base's files have been read once. */
export const unreadDigest: Digest = `sha256:${"0".repeat(64)}`;

/** The linear modules of a base, grouped so that they fit into a record: a model with 30 layers has seven entries. */
const baseModules = z.array(
  z.object({
    names: z
      .string()
      .describe("A module's name; `{0-29}` or `{0-3,7}` stands for each of these numbers: `model.layers.{0-29}.self_attn.q_proj`."),
    shape: z.tuple([z.int(), z.int()]).describe("Of its weight: outputs, inputs."),
  }),
);
export type BaseModules = z.infer<typeof baseModules>;

/** How an engine is scaled to zero and back. */
export const engineWake = z
  .strictObject({
    waitSeconds: z.int().min(1).max(3600).describe("A request waits for so long while no replica is ready, instead of failing at once."),
    idleAfterSeconds: z
      .int()
      .min(60)
      .max(7 * 86_400)
      .nullish()
      .describe(
        "Without a request for so long, the operator scales it to zero, and back when a request waits or a new version is to be proven. Absent: somebody else scales it, such as KEDA.",
      ),
  })
  .describe("It may be scaled to zero, and requests that come then wait for it. Absent: they get 503 at once.");

/** KV `engines`, by engine name. Serve writes it when it starts; every API and service reads it. */
export const engineRecord = z.object({
  engine: z.string().describe("Name of the engine: one Deployment, or one local process."),
  kind: engineKindName.nullish().describe(`What program it is. Absent: ${defaultEngineKind}.`),
  base: baseRef,
  origin: baseOrigin.nullish().describe("Where the base comes from. Absent: not known."),
  derivedFrom: derivedFrom
    .nullish()
    .describe("The unquantised base that this one was made of. Adapters of it are served here. Absent: none."),
  maxLoraRank: z.int(),
  maxLoras: z.int(),
  maxCpuLoras: z.int(),
  maxModelLen: z.int().describe("Tokens, prompt and answer together."),
  tenants: z.array(tenantName).nullish().describe("Tenants that may use it; absent: all."),
  tasks: z
    .array(z.enum(["generate", "embed"]))
    .min(1)
    .nullish()
    .describe("What it answers: chat and completions, embeddings. Absent: generate."),
  promptLogprobs: z
    .boolean()
    .nullish()
    .describe("Whether requests for logprobs of the prompt are safe: there are engines that stop on one. Absent: they are."),
  computeType: computeType
    .nullish()
    .describe("What the base is computed in, by which the proof is as strict as it can be. Absent: not known, or something else."),
  rounded: z
    .boolean()
    .nullish()
    .describe(
      "Whether the engine itself rounds weights or its cache, such as to FP8: it answers a little otherwise than the base's files say.",
    ),
  toolCallParser: z
    .string()
    .nullish()
    .describe(
      "Parser that finds calls of tools in answers. null: none, so tools are refused. Absent: not known, so nothing is judged by it.",
    ),
  pictures: z.int().min(0).nullish().describe("Most pictures in a request. Absent or 0: it takes none."),
  templateDigest: digest
    .nullish()
    .describe("sha256 of the chat template that the engine applies. Absent: not known, so nothing is judged by it."),
  wake: engineWake
    .extend({
      replicas: z.int().min(1).describe("So many it has when it is awake; where it is autoscaled, at least."),
      autoscaled: z.boolean().nullish().describe("Whether an autoscaler says how many it has when it is awake. Absent: none does."),
    })
    .nullish()
    .describe(engineWake.description ?? ""),
  modules: baseModules.nullish().describe("The base's linear modules. Absent: not known, so nothing is judged by them."),
  template: z.string().max(longestTemplate).nullish().describe("Text of the chat template. Absent: not known, or longer than 64 KiB."),
  templateProbe: templateProbe.nullish().describe("What each replica must make of a conversation. Absent: replicas are not asked."),
  problem: problem
    .nullish()
    .describe(
      "Why nothing new is made for it now: its base's files cannot be read. What its replicas hold they serve; the fields about the base are as they were read last.",
    ),
  updatedAt: isoTime,
});
export type EngineRecord = z.infer<typeof engineRecord>;
