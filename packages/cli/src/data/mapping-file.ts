/** The file of `--mapping`: how the rows of a dataset are read, instead of by detection. */
import { type DatasetMapping, datasetMapping } from "@loraline/contracts";
import { parseYaml, readText } from "../yaml-file.ts";

const kind = { code: "MAPPING", fields: "fields" } as const;

/** @throws Failure MAPPING_UNREADABLE, MAPPING_INVALID that names file, line and field. */
export const readMapping = async (path: string): Promise<DatasetMapping> => parseMapping(await readText(path, kind), path);

export const parseMapping = (text: string, path: string): DatasetMapping => parseYaml(text, path, datasetMapping, kind).value;
