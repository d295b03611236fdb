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

const trained = (slim: Method, trainer: TrainerSpec["method"]): TrainMethod => ({ files: [], trainer, distributed: true, slim });
/** Which pairs a list gives was decided when it was tokenized. */
const withoutPairs = <M extends { pairs: unknown }>({ pairs: _done, ...method }: M): Omit<M, "pairs"> => method;

const methods: MethodTable<[], TrainMethod> = {
  supervised: (method) => trained(method, { type: "supervised" }),
  dpo: (method) => trained(method, withoutPairs(method)),
  orpo: (method) => trained(method, withoutPairs(method)),
  simpo: (method) => trained(method, withoutPairs(method)),
  kto: (method) => trained(method, method),
  // Its answers are letters, and they are learned like any others.
  judge: (method) => trained(method, { type: "supervised" }),
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
