/** The custom resource `Base`: where the weights of a base come from, and which bytes they are. */
import { z } from "zod";
import { baseOrigin, baseRef } from "../engine.ts";
import { conditions } from "./conditions.ts";

export const baseResourceSpec = z.strictObject({
  hub: baseOrigin.shape.hub
    .unwrap()
    .unwrap()
    .optional()
    .describe(
      "Model of the hub, or of its mirror: `organisation/name`. Its files are fetched onto the volume. Absent: somebody puts the folder there.",
    ),
  revision: baseOrigin.shape.revision.unwrap().unwrap().optional().describe("Branch, tag or commit of it. Absent: the newest."),
});
export type BaseResourceSpec = z.infer<typeof baseResourceSpec>;

export const baseResourceStatus = z.object({
  observedGeneration: z.int().optional(),
  digest: baseRef.shape.digest.optional().describe("Of all its files; what runs, engines and adapters name."),
  revision: z.string().optional().describe("Commit of the hub that was fetched, or what the folder's base.json says."),
  conditions: conditions
    .optional()
    .describe(
      "Ready: the base is on the volume, and its digest is known; Unknown: it is fetched or read; False: why not yet. It is tried again until it is Ready.",
    ),
});
export type BaseResourceStatus = z.infer<typeof baseResourceStatus>;
