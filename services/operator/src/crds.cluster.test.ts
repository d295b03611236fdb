/** The generated CRDs on a real API server: what it takes and refuses is what the run spec takes and refuses, at the door and in words. */
import { execFile } from "node:child_process";
import { readdir, readFile } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { type ApiServer, startApiServer } from "@loraline/testkit/api-server";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { parse as parseYaml } from "yaml";
import { decideWanted } from "./decide-fine-tune.ts";

const root = join(import.meta.dirname, "../../..");
const kubectlPath = join(process.env["LORALINE_CLUSTER_BIN"] ?? join(homedir(), ".cache/loraline/cluster-bin"), "kubectl");
let api: ApiServer;

/** What kubectl wrote to both outputs, and whether it was content. */
const kubectl = (args: string[], input = ""): Promise<{ ok: boolean; said: string }> =>
  new Promise((resolve) => {
    const child = execFile(kubectlPath, ["--kubeconfig", api.kubeconfig, "--namespace", "default", ...args], (error, out, errors) =>
      resolve({ ok: error === null, said: out + errors }),
    );
    child.stdin?.end(input);
  });

beforeAll(async () => {
  api = await startApiServer();
  const { ok, said } = await kubectl(["apply", "--server-side", "-f", join(root, "helm/loraline/crds")]);
  expect(ok, said).toBe(true);
  const established = await kubectl([
    "wait",
    "--for=condition=Established",
    "--timeout=30s",
    "crd/finetunes.loraline.dev",
    "crd/adapters.loraline.dev",
  ]);
  expect(established.ok, established.said).toBe(true);
}, 90_000);
afterAll(() => api[Symbol.asyncDispose]());

const resource = (kind: string, name: string, spec: unknown): string =>
  JSON.stringify({ apiVersion: "loraline.dev/v1alpha1", kind, metadata: { name }, spec });
const create = (kind: string, spec: unknown) => kubectl(["create", "--dry-run=server", "-f", "-"], resource(kind, "it", spec));

const id = "01KB0000000000000000000DS1";
const minimal = { base: "smollm2-135m-instruct", adapter: "pirate", dataset: { id } };
const file = { kind: "adapter-file", digest: `sha256:${"a".repeat(64)}`, size: 1 };
const imported = { source: "acme/lora", config: file, weights: file };
const without = (field: "base" | "adapter" | "dataset") => Object.fromEntries(Object.entries(minimal).filter(([name]) => name !== field));

/** `names`: what the refusal has to name; absent: accepted. `later`: Kubernetes lets it in, and the operator refuses it. */
const specs: [what: string, spec: object, names?: string, later?: "later"][] = [
  ["three fields", minimal],
  ["a dataset from a URL", { ...minimal, dataset: { source: { url: "https://example.com/a.jsonl" }, mapping: { format: "text" } } }],
  ["a dataset from the hub", { ...minimal, dataset: { source: { hub: "a/b", file: "x.csv", split: "train", revision: "main" } } }],
  ["a dataset from a ConfigMap", { ...minimal, dataset: { configMap: { name: "c", key: "a.jsonl" } }, validation: { id } }],
  ["an import", { ...without("dataset"), method: { type: "import", ...imported } }],
  ["an import in its older spelling", { ...without("dataset"), import: imported }],
  ["a training by its method's name", { ...minimal, method: { type: "supervised" } }],
  ["a template by its older name", { ...minimal, tokenize: { profile: "chatml" } }],
  [
    "everything at once",
    {
      ...minimal,
      validation: { id },
      validation_overlap: "keep",
      dedupe: "near",
      min_records: 1,
      lora: {
        r: 64,
        lora_alpha: 0.5,
        lora_dropout: 0.1,
        target_modules: "all-linear",
        exclude_modules: ["lm_head"],
        use_rslora: true,
        layers_to_transform: [0, 1],
        layers_pattern: "layers",
        rank_pattern: { q_proj: 4 },
        alpha_pattern: { q_proj: 8.5 },
        init_lora_weights: "gaussian",
      },
      training: {
        per_device_train_batch_size: 8,
        num_train_epochs: 0.5,
        learning_rate: 1e-5,
        lr_scheduler_type: "cosine",
        warmup_steps: 0.1,
        eval_steps: 10,
        seed: 4294967295,
      },
      tokenize: { template: "seed", system: "be kind", max_length: 512, too_long: "split", packing: "auto" },
      gate: "none",
      gate_accuracy: true,
      promote: "canary",
      canary: { steps: [1, 50], interval_s: 1, min_requests: 0, max_error_rate: 0, max_latency_ratio: 3, max_loss_increase: 0.1 },
      placement: { mode: "pinned", pins: ["a"] },
      gpus: 0,
      max_attempts: 1,
      metadata: { team: "a" },
    },
  ],
  [
    "a config that PEFT wrote",
    {
      ...minimal,
      lora: {
        task_type: "CAUSAL_LM",
        peft_type: "LORA",
        inference_mode: true,
        fan_in_fan_out: false,
        auto_mapping: null,
        base_model_name_or_path: "x",
        revision: null,
        bias: "none",
        use_dora: false,
        modules_to_save: null,
        loftq_config: {},
        eva_config: null,
        layer_replication: [],
        megatron_core: "megatron.core",
        r: 16,
        target_modules: ["q_proj"],
        init_lora_weights: true,
      },
    },
  ],
  ["no base", without("base"), "base"],
  ["no adapter", without("adapter"), "adapter"],
  ["neither dataset nor import", without("dataset"), "dataset"],
  ["dataset and import", { ...minimal, method: { type: "import", ...imported } }, "import"],
  ["dataset and import in its older spelling", { ...minimal, import: imported }, "import"],
  ["an evaluated import", { ...without("dataset"), method: { type: "import", ...imported }, validation: { id } }, "validation"],
  [
    "an import without its files",
    { ...without("dataset"), method: { type: "import", source: "acme/lora" } },
    "method import needs weights",
  ],
  ["an import that is said twice", { ...without("dataset"), method: { type: "import", ...imported }, import: imported }, "import"],
  ["a method that is not offered", { ...minimal, method: { type: "telepathy" } }, "method.type"],
  ["a training that names an adapter's files", { ...minimal, method: { type: "supervised", ...imported } }, "source", "later"],
  ["an empty dataset", { ...minimal, dataset: {} }, "dataset"],
  ["two datasets in one", { ...minimal, dataset: { id, configMap: { name: "c", key: "k" } } }, "dataset"],
  ["a mapping of what is read already", { ...minimal, dataset: { id, mapping: { format: "text" } } }, "mapping"],
  ["a source that is two", { ...minimal, dataset: { source: { url: "https://a.b/c", hub: "a/b" } } }, "source"],
  ["a split of a URL", { ...minimal, dataset: { source: { url: "https://a.b/c", split: "train" } } }, "source"],
  ["an id that is none", { ...minimal, dataset: { id: "file-1" } }, "dataset.id"],
  ["an unknown format", { ...minimal, dataset: { configMap: { name: "c", key: "k" }, mapping: { format: "poem" } } }, "mapping.format"],
  ["an adapter with a capital", { ...minimal, adapter: "Pirate" }, "adapter"],
  ["a field that is misspelt", { ...minimal, promot: "auto" }, "promot"],
  ["a field inside that is misspelt", { ...minimal, training: { learning_rat: 1 } }, "learning_rat"],
  ["a rank of nothing", { ...minimal, lora: { r: 0 } }, "lora.r"],
  ["a rank in words", { ...minimal, lora: { r: "eight" } }, "lora.r"],
  ["a dropout of one", { ...minimal, lora: { lora_dropout: 1 } }, "lora.lora_dropout"],
  ["DoRA", { ...minimal, lora: { use_dora: true } }, "use_dora is refused: vLLM cannot serve DoRA"],
  [
    "whole modules",
    { ...minimal, lora: { modules_to_save: ["lm_head"] } },
    "modules_to_save is refused: vLLM refuses adapters that carry whole modules",
  ],
  ["biases", { ...minimal, lora: { bias: "all" } }, "bias is refused: vLLM refuses adapters with trained biases"],
  ["LoftQ", { ...minimal, lora: { loftq_config: { loftq_bits: 4 } } }, "loftq_config"],
  ["a learning rate of eleven", { ...minimal, training: { learning_rate: 11 } }, "training.learning_rate"],
  ["an unknown scheduler", { ...minimal, training: { lr_scheduler_type: "sine" } }, "lr_scheduler_type"],
  ["half a step", { ...minimal, training: { save_steps: 0.5 } }, "training.save_steps"],
  ["too short sequences", { ...minimal, tokenize: { max_length: 2 } }, "tokenize.max_length"],
  ["a canary that nobody asked for", { ...minimal, canary: { steps: [5] } }, "canary"],
  ["canary steps that fall", { ...minimal, promote: "canary", canary: { steps: [50, 5] } }, "canary.steps"],
  ["canary steps that stand", { ...minimal, promote: "canary", canary: { steps: [5, 5] } }, "canary.steps"],
  ["a spread over nothing", { ...minimal, placement: { mode: "spread" } }, "replicas"],
  ["pins without pinning", { ...minimal, placement: { mode: "all", pins: ["a"] } }, "pins"],
  ["a placement without a mode", { ...minimal, placement: { replicas: 2 } }, "placement.mode"],
  ["fewer GPUs than none", { ...minimal, gpus: -1 }, "gpus"],
  ["modules that are a number", { ...minimal, lora: { target_modules: 3 } }, "target_modules", "later"],
  ["an initialisation that changes the base", { ...minimal, lora: { init_lora_weights: "corda" } }, "init_lora_weights", "later"],
  ["packing in words", { ...minimal, tokenize: { packing: "sometimes" } }, "packing", "later"],
];

describe("FineTune", () => {
  it.for(specs)("%s", async ([, spec, names, later]) => {
    const origin = { namespace: "default", namespaceUid: "n", name: "it", uid: "u" };
    const judged = decideWanted(spec, { dataset: id, validation: id }, origin);
    // Canary without promote: canary is judged with the engines, as at every other door.
    expect("problems" in judged).toBe(names !== undefined && names !== "canary");
    const { ok, said } = await create("FineTune", spec);
    expect(ok, said).toBe(names === undefined || later !== undefined);
    expect(said).toContain(ok ? "created" : names);
  });

  it("cannot be changed, and says what to do instead", async () => {
    expect(await kubectl(["apply", "-f", "-"], resource("FineTune", "fixed", minimal))).toMatchObject({ ok: true });
    for (const change of [
      { ...minimal, gpus: 2 },
      { ...minimal, lora: { target_modules: ["q_proj"] } },
    ]) {
      const { ok, said } = await kubectl(["apply", "-f", "-"], resource("FineTune", "fixed", change));
      expect(ok).toBe(false);
      expect(said).toContain("make a new one with another name");
    }
    // The same again is no change, and neither are labels.
    expect(await kubectl(["apply", "-f", "-"], resource("FineTune", "fixed", minimal))).toMatchObject({ ok: true });
    expect(await kubectl(["label", "finetune/fixed", "team=a"])).toMatchObject({ ok: true });
    const { said } = await kubectl(["get", "ft", "fixed", "-o", "json"]);
    // Nothing was filled in.
    expect((JSON.parse(said) as { spec: unknown }).spec).toEqual(minimal);
  });

  it("explains its fields and shows its columns", async () => {
    const { said } = await kubectl(["explain", "finetune.spec.lora.r"]);
    expect(said).toContain("Rank");
    expect(said).toContain("Default: 8");
    expect((await kubectl(["get", "crd", "finetunes.loraline.dev", "-o", "yaml"])).said.replaceAll(/\s+/g, " ")).toContain(
      "has not ended cancels the run",
    );
    expect((await kubectl(["get", "loraline"])).said).toMatch(/ADAPTER +PHASE +STEP +LOSS +ETA +VERSION +CONVERGED +AGE/);
  });
});

describe("Adapter", () => {
  it.for<[string, object, string?]>([
    ["nothing asked for", {}],
    ["a version", { version: 3 }],
    ["a version step by step", { version: 3, canary: { steps: [10] }, placement: { mode: "spread", replicas: 2 } }],
    ["version nought", { version: 0 }, "version"],
    ["a canary of nothing", { canary: { steps: [10] } }, "canary"],
    ["steps that fall", { version: 1, canary: { steps: [10, 5] } }, "canary.steps"],
    ["a typing error", { versoin: 1 }, "versoin"],
    ["a spread over nothing", { placement: { mode: "spread" } }, "replicas"],
    ["five versions kept", { keep: 5 }],
    ["all versions kept", { keep: "all" }],
    ["no version kept", { keep: 0 }, "keep"],
    ["a word that is none for what is kept", { keep: "some" }, "keep"],
  ])("%s", async ([, spec, names]) => {
    const { ok, said } = await create("Adapter", spec);
    expect(ok, said).toBe(names === undefined);
    expect(said).toContain(names ?? "created");
  });
});

it("upgrades what an earlier chart's Helm made, by the command of docs/operations.md", async () => {
  const earlier = (await readFile(join(root, "helm/loraline/crds/finetunes.yaml"), "utf8")).replace("One fine-tuning run", "A run");
  // As Helm 4 does at each install.
  const asHelm = ["apply", "--server-side", "--field-manager=helm", "-f", "-"];
  expect((await kubectl([...asHelm, "--force-conflicts"], earlier)).ok).toBe(true);
  const page = await readFile(join(root, "docs/operations.md"), "utf8");
  const [, command = ""] = /^kubectl (apply .*? -f helm\/loraline\/crds)/m.exec(page) ?? [];
  const { ok, said } = await kubectl(command.split(" ").map((word) => word.replace("helm/loraline/crds", join(root, word))));
  expect(ok, said).toBe(true);
  expect((await kubectl(["get", "crd", "finetunes.loraline.dev", "-o", "yaml"])).said).toContain("One fine-tuning run");
  const again = await kubectl(asHelm, earlier);
  expect(again.ok, again.said).toBe(true);
});

it("takes every sample, and what docs/kubectl.md shows", async () => {
  const dir = join(root, "samples/kubernetes");
  const samples = await Promise.all((await readdir(dir)).map((name) => readFile(join(dir, name), "utf8")));
  const page = await readFile(join(root, "docs/kubectl.md"), "utf8");
  // One block is for Argo CD's own ConfigMap.
  const shown = [...page.matchAll(/```yaml\n([^]*?)```/g)].map(([, text = ""]) => text).filter((text) => text.startsWith("apiVersion"));
  expect([samples.length, shown.length]).toEqual([3, 4]);
  for (const text of [...samples, ...shown]) {
    const { ok, said } = await kubectl(["create", "--dry-run=server", "-f", "-"], text);
    expect(ok, said).toBe(true);
  }
  const tunes = samples.map((text) => parseYaml(text) as { kind: string; spec: unknown }).filter(({ kind }) => kind === "FineTune");
  const origin = { namespace: "n", namespaceUid: "u", name: "x", uid: "y" };
  for (const { spec } of tunes) expect(decideWanted(spec, { dataset: id, validation: id }, origin)).toHaveProperty("spec");
});
