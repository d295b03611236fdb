/** `make generate`: writes the chart's values.md. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { valuesPage } from "./values-page.ts";

const chart = join(import.meta.dirname, "../../helm/loraline");
writeFileSync(join(chart, "values.md"), valuesPage(readFileSync(join(chart, "values.yaml"), "utf8")));
