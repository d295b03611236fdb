/** The quotas that the operator grants. */
import { quotaSettings } from "@loraline/contracts";
import { z } from "zod";

/** Settings of a process that holds tenants to quotas: part of its schema for `loadEnv`. */
export const quotasEnv = {
  LORALINE_QUOTAS: z
    .string()
    .optional()
    .transform((text, context) => {
      try {
        return JSON.parse(text ?? "{}") as unknown;
      } catch (error) {
        context.addIssue(`is not JSON: ${(error as Error).message}`);
        return z.NEVER;
      }
    })
    .pipe(quotaSettings)
    .describe('JSON: {"default": {"gpusAtOnce": 16}, "tenants": {"acme": {"gpusAtOnce": 64}}}; null is no limit.'),
};
