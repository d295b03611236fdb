/** How the base is held in training. It is served as it is. */
import { z } from "zod";

export const quantization = z
  .enum(["nf4", "int8"])
  .describe(
    "The base's linear layers are held in 4 bits (`nf4`, QLoRA) or 8 bits (`int8`, weights only) while the adapter is trained, which takes a quarter or half of their memory, and more time. Measured and proven is the adapter on the base as it is served. Absent: the base is trained as it is.",
  );
