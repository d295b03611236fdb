/** `make generate`: writes `generated/` again, and the generated files of chart, trainer and docs. */
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { chartFiles, docFiles, generatedFiles, trainerFiles } from "./generate.ts";

const root = join(import.meta.dirname, "../../generated");
const chart = join(import.meta.dirname, "../../../../helm/loraline");
const docs = join(import.meta.dirname, "../../../../docs");
rmSync(root, { recursive: true, force: true });
rmSync(join(chart, "crds"), { recursive: true, force: true });
write(root, generatedFiles());
write(chart, chartFiles());
write(join(import.meta.dirname, "../../../../services/train/trainer"), trainerFiles());
write(docs, docFiles());

function write(folder: string, files: ReadonlyMap<string, string>): void {
  for (const [path, text] of files) {
    mkdirSync(dirname(join(folder, path)), { recursive: true });
    writeFileSync(join(folder, path), text);
  }
}
