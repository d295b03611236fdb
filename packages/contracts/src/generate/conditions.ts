/** Conditions of custom resources, by Kubernetes' conventions. */
import { z } from "zod";

export const time = z.iso.datetime();
const condition = z.object({
  type: z.string(),
  status: z.enum(["True", "False", "Unknown"]),
  reason: z.string().describe("A word, or the code of a problem."),
  message: z.string(),
  observedGeneration: z.int(),
  lastTransitionTime: time.describe("When `status` became what it is."),
});
export type Condition = z.infer<typeof condition>;
export const conditions = z.array(condition).meta({ "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"] });
