/** A chat template as an engine applies it, and the test of whether a replica applies the same one. */
import { z } from "zod";

/** A test conversation as the template renders it; a replica that renders it differently applies another template. */
export const templateProbe = z.object({
  messages: z.array(z.object({ role: z.enum(["system", "user", "assistant"]), content: z.string() })).min(1),
  text: z.string(),
  input_ids: z.array(z.int().nonnegative()).min(1),
});
export type TemplateProbe = z.infer<typeof templateProbe>;

/** Most characters of a template that is stored; of longer ones only the digest is. */
export const longestTemplate = 65_536;
