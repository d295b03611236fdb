/** The file of `--mapping`: how the rows of a dataset are read, instead of by detection. */
import { type DatasetMapping, datasetMapping } from "@loraline/contracts";
import { parseYaml, readText, type YamlKind } from "../yaml-file.ts";

const kind: YamlKind = { unreadable: "MAPPING_UNREADABLE", invalid: "MAPPING_INVALID", fields: "fields" };

/** @throws Failure MAPPING_UNREADABLE, MAPPING_INVALID that names file, line and field. */
export const readMapping = async (path: string): Promise<DatasetMapping> => parseMapping(await readText(path, kind), path);

export const parseMapping = (text: string, path: string): DatasetMapping => parseYaml(text, path, datasetMapping, kind).value;
