/** A chat template as an engine applies it, and how to see whether a replica really does. */
import { z } from "zod";

/** A conversation as the template presents it to the model; a replica that presents it otherwise applies another template. */
export const templateProbe = z.object({
  messages: z.array(z.object({ role: z.enum(["system", "user", "assistant"]), content: z.string() })).min(1),
  text: z.string(),
  input_ids: z.array(z.int().nonnegative()).min(1),
});
export type TemplateProbe = z.infer<typeof templateProbe>;

/** Longer templates are known by their digest only. */
export const longestTemplate = 65_536;
