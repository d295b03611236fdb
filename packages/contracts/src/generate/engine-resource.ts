/** The custom resource `Engine`: what the chart's `engines` say, for one engine, without an upgrade of the release. */
import { z } from "zod";
import { conditions } from "./conditions.ts";
import { engineSettings } from "./engine-settings.ts";

const quantities = z.record(
  z.string(),
  z.union([z.int(), z.string().regex(/^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$/, "a quantity, such as 500m or 16Gi")]),
);
const { base, derivedFrom, ...options } = engineSettings.omit({ engine: true, kind: true, replicas: true, autoscaled: true }).shape;

/** `name`, `base` and what the engine needs; the rest is as the chart's `engineDefaults` say. */
export const engineResourceSpec = z
  .strictObject({
    base,
    derivedFrom,
    replicas: z
      .int()
      .min(0)
      .max(1000)
      .optional()
      .describe("Copies of the engine; `kubectl scale`, an HPA and KEDA set it. Absent: as the chart's engineDefaults say."),
    ...z.strictObject(options).partial().shape,
    extraArgs: z
      .array(z.string().max(1000))
      .max(50)
      .optional()
      .describe(options.extraArgs.description ?? ""),
    resources: z
      .strictObject({ requests: quantities.optional(), limits: quantities.optional() })
      .optional()
      .describe("Of the engine's container, GPUs aside, which `gpus` counts. Absent: as the chart's engineDefaults say."),
    nodeSelector: z.record(z.string(), z.string()).optional().describe("Labels of the nodes. Absent: as the chart's engineDefaults say."),
  })
  .describe("Fields that are absent are as the chart's engineDefaults say, unless they say something else themselves.");
export type EngineResourceSpec = z.infer<typeof engineResourceSpec>;

export const engineResourceStatus = z.object({
  observedGeneration: z.int().optional(),
  replicas: z.int().optional().describe("Pods that there are."),
  readyReplicas: z.int().optional().describe("Those that serve: vLLM answers, and every adapter that they should hold is proven."),
  selector: z.string().optional().describe("Labels of the pods, for autoscalers."),
  digest: z.string().optional().describe("Of the base's files, as serve has read them."),
  maxLoraRank: z.int().optional().describe("Highest rank of an adapter."),
  conditions: conditions
    .optional()
    .describe(
      "Accepted: the operator has made the Deployment for it; False: why not. Ready: all its replicas serve; Unknown: they start. Stalled: it takes a change of the spec, or what the message names.",
    ),
});
export type EngineResourceStatus = z.infer<typeof engineResourceStatus>;
