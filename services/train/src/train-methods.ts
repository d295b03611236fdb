/** What an attempt does for each method of the run spec. Pure. */
import { type BlobRef, byMethod, type Method, type MethodTable, type TrainerSpec } from "@loraline/contracts";
import { adapterFiles } from "@loraline/models";

interface TrainMethod {
  /** Beside the tokens: blobs to fetch, and where they go below the trainer's folder. */
  files: { blob: BlobRef; path: string }[];
  /** `method` of the trainer's spec.json. */
  trainer: TrainerSpec["method"];
  /** Whether all GPUs of all nodes work on it together; else one process does, on whatever there is. */
  distributed: boolean;
  /** The method without what only other stages read. */
  slim: Method;
}

const methods: MethodTable<[], TrainMethod> = {
  supervised: (method) => ({ files: [], trainer: { type: "supervised" }, distributed: true, slim: method }),
  import: (method) => ({
    files: [
      { blob: method.config, path: `import/${adapterFiles.config}` },
      { blob: method.weights, path: `import/${adapterFiles.weights}` },
    ],
    trainer: { type: "import" },
    distributed: false,
    slim: { ...method, probes: undefined },
  }),
};

export const trainMethodOf = ({ method }: { method: Method }): TrainMethod => byMethod(methods, method);
