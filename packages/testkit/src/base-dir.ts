/** Folder of the real instruct model that `make setup` puts into the checkout. */
import { join } from "node:path";

export const basesDir = join(import.meta.dirname, "../../../.loraline/bases");
export const baseName = "smollm2-135m-instruct";
export const smollm2Dir = join(basesDir, baseName);
