/** Renders the chart with several values and has a real API server validate it. Nothing is installed. */
import { execFile, spawn } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { engineSettingsList, natsPermissions, runSpec } from "@loraline/contracts";
import { type ApiServer, startApiServer } from "@loraline/testkit/api-server";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { parse, parseAllDocuments } from "yaml";
import { shapesOf } from "./kubernetes-shapes.ts";
import { attemptSpec } from "../services/train/src/attempt/attempt-spec.ts";
import { jobManifest, trainPodSettings } from "../services/train/src/launchers/job-manifest.ts";

const root = join(import.meta.dirname, "..");
const chart = join(root, "helm/loraline");
const bin = process.env.LORALINE_CLUSTER_BIN ?? join(homedir(), ".cache/loraline/cluster-bin");
const run = promisify(execFile);
const helm = async (...args: string[]): Promise<string> =>
  (await run(join(bin, "helm"), args, { env: { PATH: process.env.PATH, HOME: homedir() }, maxBuffer: 64 * 1024 ** 2 })).stdout;
const values = (name: string): string => join(chart, "tests/values", `${name}.yaml`);
const render = (...args: string[]): Promise<string> => helm("template", "loraline", chart, "--namespace", namespace, ...args);

/** CustomResourceDefinitions of others, out of their Go modules. */
const foreignCrds = await Promise.all(
  [
    ["github.com/kedacore/keda/v2@v2.18.1", "config/crd/bases/keda.sh_scaledobjects.yaml"] as const,
    ["sigs.k8s.io/lws@v0.7.0", "config/crd/bases/leaderworkerset.x-k8s.io_leaderworkersets.yaml"] as const,
  ].map(async ([module, file]) => {
    const { stdout } = await run("go", ["mod", "download", "-json", module], { timeout: 120_000 });
    return join((JSON.parse(stdout) as { Dir: string }).Dir, file);
  }),
);
const namespace = "line";
const cases: [string, string[]][] = [
  ["nothing set", []],
  ["an engine", ["-f", values("engine")]],
  ["everything", ["-f", values("everything")]],
  ["no persistence, no policies", ["--set", "nats.persistence.enabled=false,networkPolicy.enabled=false,operator.enabled=false"]],
  ["autoscalers", ["-f", values("engine"), "-f", values("autoscaling")]],
  ["KEDA", ["-f", values("engine"), "-f", values("keda")]],
  ["an engine on several nodes", ["-f", values("engine"), "-f", values("nodes")]],
  ["NATS from elsewhere", ["--set", "nats.enabled=false,nats.url=nats://nats.nats:4222,nats.auth.existingSecret=nats"]],
];

let api: ApiServer;
const kubectl = (args: string[], input = ""): Promise<{ code: number | null; out: string }> =>
  new Promise((resolve, reject) => {
    const child = spawn(join(bin, "kubectl"), ["--kubeconfig", api.kubeconfig, ...args]);
    let out = "";
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (part: Buffer) => (out += part.toString()));
    child.once("error", reject);
    child.once("close", (code) => resolve({ code, out }));
    child.stdin.end(input);
  });

beforeAll(async () => {
  api = await startApiServer();
  const levels = ["enforce", "warn"].map((mode) => `pod-security.kubernetes.io/${mode}: restricted`);
  // A dry run makes no namespace, so that of the attempts must be there.
  const made = [namespace, `${namespace}-runs`]
    .map((name) => `apiVersion: v1\nkind: Namespace\nmetadata: {name: ${name}, labels: {${levels.join(", ")}}}\n`)
    .join("---\n");
  for (const [args, input] of [
    [["apply", "-f", "-"], made],
    [["apply", "--server-side", "-f", join(chart, "crds")], ""],
    ...foreignCrds.map((file) => [["apply", "--server-side", "-f", file], ""] as const),
  ] as const) {
    const { code, out } = await kubectl([...args], input);
    expect(code, out).toBe(0);
  }
}, 120_000);
afterAll(() => api[Symbol.asyncDispose]());

describe("NATS' store of before there were accounts", () => {
  const script = async (several: boolean, dir: string): Promise<string> => {
    const rendered = await render("--set", `nats.replicas=${several ? 3 : 1}`, "--show-only", "templates/nats.yaml");
    const documents = parseAllDocuments(rendered).map((document) => document.toJS() as StatefulSet);
    const [check] = documents.filter(({ kind }) => kind === "StatefulSet").flatMap(({ spec }) => spec.template.spec.initContainers);
    return (check?.args[0] ?? "").replaceAll("/data/jetstream", dir);
  };
  interface StatefulSet {
    kind: string;
    spec: { template: { spec: { initContainers: { args: string[] }[] } } };
  }

  it("is taken over by a single server, once; and one of several servers is left alone and named", async () => {
    const dir = mkdtempSync(join(tmpdir(), "loraline-nats-store-"));
    try {
      mkdirSync(join(dir, "$G/streams"), { recursive: true });
      for (let start = 0; start < 2; start++) {
        await run(process.execPath, ["-e", await script(false, dir)]);
        expect(readdirSync(dir)).toEqual(["LORALINE"]);
      }
      mkdirSync(join(dir, "$SYS/_js_/_meta_"), { recursive: true });
      await run(process.execPath, ["-e", await script(true, dir)]);
      renameSync(join(dir, "LORALINE"), join(dir, "$G"));
      await expect(run(process.execPath, ["-e", await script(true, dir)])).rejects.toMatchObject({
        stderr: expect.stringMatching(/back up/),
      });
      expect(readdirSync(dir).toSorted()).toEqual(["$G", "$SYS"]);
    } finally {
      rmSync(dir, { recursive: true });
    }
  });
});

it("passes Helm's lint and its own suites", async () => {
  expect(await helm("lint", "--strict", chart)).toContain("0 chart(s) failed");
  const { stdout } = await run(join(bin, "untt"), [chart]);
  expect(stdout).toMatch(/Tests: +[1-9]\d* passed, \d+ total/);
}, 240_000);

describe.each(cases)("with %s", (_, args) => {
  it("the API server takes every object, and warns of none, in a restricted namespace", async () => {
    const { code, out } = await kubectl(
      ["apply", "--dry-run=server", "--validate=strict", "--warnings-as-errors", "-f", "-"],
      await render(...args),
    );
    expect(code, out).toBe(0);
    expect(out.match(/\(server dry run\)/g)?.length).toBeGreaterThan(20);
  });

  it("train and serve can read what it gives them", async () => {
    const rendered = await render(...args);
    const pods = /^ {2}pods\.json: \|\n((?: {4}.*\n)+)/m.exec(rendered)?.[1];
    expect(trainPodSettings.parse(JSON.parse(pods ?? "")).namespace).toBe(`${namespace}-runs`);
    const engines = JSON.parse(JSON.parse(/^ {2}engines\.json: (".*")$/m.exec(rendered)?.[1] ?? "") as string) as unknown;
    const served = rendered.matchAll(/^ +- --served-model-name=(\S+)$/gm).map(([, base]) => base);
    expect(engineSettingsList.parse(engines)).toHaveLength(new Set(served).size);
  });
});

it("its schema knows Kubernetes' own objects as the API server does (`vitest run --project cluster tests/chart.cluster.test.ts -u` writes them)", async () => {
  const documents = await Promise.all(
    ["/openapi/v3/api/v1", "/openapi/v3/apis/autoscaling/v2", "/openapi/v3/apis/networking.k8s.io/v1"].map(async (path) =>
      JSON.parse((await kubectl(["get", "--raw", path])).out),
    ),
  );
  await expect(`${JSON.stringify(shapesOf(documents), null, 1)}\n`).toMatchFileSnapshot(
    join(root, "packages/contracts/src/generate/kubernetes-shapes.json"),
  );
});

it("what it says after an install is a FineTune that the API server takes, of a sample that is there", async () => {
  const said = await helm("install", "loraline", chart, "--namespace", namespace, "-f", values("engine"), "--dry-run=client");
  const [, manifest = ""] = /apply -f - <<'Y'\n([^]*?)\nY\n/.exec(said.slice(said.indexOf("NOTES:"))) ?? [];
  const { code, out } = await kubectl(["--namespace", namespace, "apply", "--dry-run=server", "--validate=strict", "-f", "-"], manifest);
  expect([code, out]).toEqual([0, "finetune.loraline.dev/persona created (server dry run)\n"]);
  const [{ spec }] = parseAllDocuments(manifest).map(
    (document) => document.toJS() as { spec: { dataset: { configMap: { name: string; key: string } } } },
  ) as [{ spec: { dataset: { configMap: { name: string; key: string } } } }];
  const { name, key } = spec.dataset.configMap;
  const sample = (await objectsOf("-f", values("engine"))).find(({ kind, metadata }) => kind === "ConfigMap" && metadata.name === name);
  expect(sample?.data?.[key]).toBe(readFileSync(join(root, "samples/persona.jsonl"), "utf8"));
});

interface Rendered {
  kind: string;
  metadata: { name: string; labels?: Record<string, string>; annotations?: Record<string, string> };
  data?: Record<string, string>;
  spec?: { template?: object; replicas?: number; maxUnavailable?: number };
}
const objectsOf = async (...args: string[]): Promise<Rendered[]> =>
  parseAllDocuments(await render(...args))
    .map((document) => document.toJS() as Rendered | null)
    .filter((object) => object !== null);

it("a chart of another version, with the same images, starts no pod anew", async () => {
  const dir = mkdtempSync(join(tmpdir(), "loraline-chart-"));
  try {
    cpSync(chart, dir, { recursive: true });
    const about = readFileSync(join(dir, "Chart.yaml"), "utf8");
    writeFileSync(
      join(dir, "Chart.yaml"),
      about.replace(/^version: .*/m, "version: 9.9.9").replace(/^appVersion: .*/m, 'appVersion: "9.9.9"'),
    );
    const settings = ["-f", values("everything"), "--set", "image.tag=v1"];
    const podsOf = (objects: Rendered[]) =>
      objects.filter(({ spec }) => spec?.template).map(({ metadata, spec }) => [metadata.name, spec?.template]);
    const rendered = parseAllDocuments(await helm("template", "loraline", dir, "--namespace", namespace, ...settings));
    const after = podsOf(rendered.map((document) => document.toJS() as Rendered));
    expect(after.length).toBeGreaterThan(8);
    expect(after).toEqual(podsOf(await objectsOf(...settings)));
  } finally {
    rmSync(dir, { recursive: true });
  }
});

it("every object has the labels and annotations that are set for all", async () => {
  for (const { kind, metadata } of await objectsOf("-f", values("everything"), "--set", "train.tenantNamespaces.acme=acme-runs")) {
    expect(metadata.labels, `${kind} ${metadata.name}`).toMatchObject({ team: "ml" });
    expect(metadata.annotations, `${kind} ${metadata.name}`).toMatchObject({ "example.com/owner": "ml" });
  }
});

it("leaves the number of what is scaled by metrics to its autoscaler, as docs/operations.md shows", async () => {
  const objects = await objectsOf("-f", values("engine"), "-f", values("autoscaling"));
  const scalers = objects.filter(({ kind }) => kind === "HorizontalPodAutoscaler") as unknown as {
    spec: { scaleTargetRef: { name: string }; metrics: { type: string }[] };
  }[];
  expect(scalers.map(({ spec }) => [spec.scaleTargetRef.name, spec.metrics.map(({ type }) => type)])).toEqual([
    ["loraline-gateway", ["Resource", "Pods"]],
    ["loraline-tokenize", ["External"]],
    ["loraline-engine-qwen", ["Pods"]],
  ]);
  for (const { spec } of scalers)
    expect(
      objects.find(({ kind, metadata }) => kind === "Deployment" && metadata.name === spec.scaleTargetRef.name)?.spec,
    ).not.toHaveProperty("replicas");
  expect(readFileSync(join(root, "docs/operations.md"), "utf8")).toContain(readFileSync(values("autoscaling"), "utf8"));
  for (const [set, words] of [
    [
      'engineDefaults.autoscaling={"enabled":true,"minReplicas":1,"maxReplicas":2,"metrics":[]}',
      'engine "qwen": autoscaling is enabled, but has no metrics',
    ],
    ['tokenize.autoscaling={"enabled":true,"metrics":[{"type":"Pods","pod":{}}]}', "additional properties 'pod' not allowed"],
  ] as const)
    await expect(render("-f", values("engine"), "--set-json", set)).rejects.toMatchObject({ stderr: expect.stringContaining(words) });
});

it("shows an engine on several nodes as docs/operations.md does", () => {
  expect(readFileSync(join(root, "docs/operations.md"), "utf8")).toContain(readFileSync(values("nodes"), "utf8"));
});

describe("an attempt with RDMA, as docs/operations.md shows it", () => {
  const page = readFileSync(join(root, "docs/operations.md"), "utf8");
  const [, recipe = ""] = /RDMA between the nodes[^]*?```yaml\n([^]*?)```/.exec(page) ?? [];
  const { train } = parse(recipe) as { train: { pods: { podTemplate: { spec: object } } } };
  const podOf = (podTemplate: object): string => {
    const runId = "01KB0000000000000000000000";
    const tokens = { kind: "tokens" as const, digest: `sha256:${"a".repeat(64)}` as const, size: 1 };
    const spec = runSpec.parse({ base: "b", adapter: "pirate", dataset: "01KB0000000000000000000001" });
    const settings = trainPodSettings.parse({ namespace: `${namespace}-runs`, image: "trainer:1", courier: {}, podTemplate });
    const attempt = {
      version: 1,
      tenant: "acme",
      runId,
      attempt: 1,
      name: "train-1",
      runSpec: spec,
      tokens,
      resume: null,
      traceparent: null,
    };
    const { spec: job } = jobManifest(attemptSpec.parse(attempt), settings);
    return JSON.stringify({ apiVersion: "v1", kind: "Pod", metadata: { name: "rdma" }, spec: job?.template.spec });
  };
  const withCapability = {
    spec: { initContainers: [{ name: "trainer", securityContext: { capabilities: { drop: ["ALL"], add: ["IPC_LOCK"] } } }] },
  };
  const inNamespace = (name: string, pod: string) => kubectl(["apply", "--dry-run=server", "--namespace", name, "-f", "-"], pod);

  beforeAll(async () => {
    const runtimeClass = { apiVersion: "node.k8s.io/v1", kind: "RuntimeClass", metadata: { name: "memlock" }, handler: "memlock" };
    const labels = { "pod-security.kubernetes.io/enforce": "privileged" };
    const open = { apiVersion: "v1", kind: "Namespace", metadata: { name: "open-runs", labels } };
    for (const object of [runtimeClass, open])
      expect(await kubectl(["apply", "-f", "-"], JSON.stringify(object))).toMatchObject({ code: 0 });
  });

  it("is admitted where Pod Security is restricted, and has the device", async () => {
    const pod = podOf(train.pods.podTemplate);
    expect(JSON.parse(pod)).toMatchObject({
      spec: {
        runtimeClassName: "memlock",
        initContainers: [
          { name: "trainer", resources: { limits: { "rdma/hca": "1" } }, securityContext: { capabilities: { drop: ["ALL"] } } },
        ],
      },
    });
    const { code, out } = await inNamespace(`${namespace}-runs`, pod);
    expect(code, out).toBe(0);
  });

  it("with IPC_LOCK is refused there, and admitted where the namespace says so", async () => {
    const pod = podOf(withCapability);
    expect(await inNamespace(`${namespace}-runs`, pod)).toMatchObject({
      code: 1,
      out: expect.stringMatching(/unrestricted capabilities.*IPC_LOCK/),
    });
    expect(await inNamespace("open-runs", pod)).toMatchObject({ code: 0 });
  });
});

it("sets no number of replicas where the number is null, and a budget where there may be several", async () => {
  const parts = ["gateway", "ingest", "tokenize", "train", "serve", "operator", "engineDefaults"];
  const set = ["-f", values("engine"), "--set", parts.map((part) => `${part}.replicas=null`).join(",")];
  const objects = await objectsOf(
    ...set,
    "--set-json",
    'engines=[{"name":"a","base":"b"},{"name":"c","base":"d","replicas":null},{"name":"e","base":"f","replicas":1}]',
  );
  const numbers = objects.filter(({ kind }) => kind === "Deployment").map(({ metadata, spec }) => [metadata.name, spec?.replicas]);
  expect(numbers).toHaveLength(9);
  expect(numbers.filter(([, replicas]) => replicas !== undefined)).toEqual([["loraline-engine-e", 1]]);
  const budgets = (of: Rendered[]) =>
    of.filter(({ kind }) => kind === "PodDisruptionBudget").map(({ metadata, spec }) => `${metadata.name} ${spec?.maxUnavailable}`);
  expect(budgets(objects)).toEqual(
    ["gateway", "ingest", "tokenize", "train", "serve", "operator", "engine-a", "engine-c"].map((part) => `loraline-${part} 1`),
  );
  // One pod is protected by a budget of none, which somebody has to want.
  expect(budgets(await objectsOf("-f", values("engine")))).toEqual(["loraline-gateway 1", "loraline-engine-qwen 1"]);
  expect(budgets(await objectsOf("--set", "podDisruptionBudget.keepSingle=true"))).toContain("loraline-nats 0");
});

it("every value has a line that says what it means, or stands among others of its kind", () => {
  const lines = readFileSync(join(chart, "values.yaml"), "utf8").split("\n");
  const bare = lines.filter((line, i) => /^\w/.test(line) && !/^\s*#/.test(lines[i - 1] ?? "") && !/^\w/.test(lines[i - 1] ?? ""));
  // Sections whose keys are explained one by one.
  expect(bare.map((line) => line.replace(/:.*/, ""))).toEqual([
    "image",
    "tracing",
    "nats",
    "networkPolicy",
    "podDisruptionBudget",
    "aggregatedRoles",
  ]);
});

it.each<[string, string[], RegExp]>([
  ["a misspelt key", ["--set", "gatway.replicas=3"], /additional properties 'gatway' not allowed/],
  ["a misspelt key below", ["--set", "gateway.replica=3"], /'\/gateway': additional properties 'replica' not allowed/],
  ["a rank that vLLM does not have", ["--set", "engineDefaults.maxLoraRank=24"], /maxLoraRank': value must be one of 1, 8, 16, 32/],
  ["two servers of NATS", ["--set", "nats.replicas=2"], /'\/nats\/replicas': value must be one of 1, 3, 5/],
  ["words for a number", ["--set", "gateway.replicas=many"], /'\/gateway\/replicas': got string, want integer/],
  ["a tenant that cannot be one", ["--set", "bootstrap.tenant=A.B"], /'\/bootstrap\/tenant'/],
  [
    "a typo in a pod's own words",
    ["--set", "train.pods.podTemplate.spec.nodSelector.a=b"],
    /'\/train\/pods\/podTemplate\/spec': additional properties 'nodSelector' not/,
  ],
  [
    "a typo in a toleration",
    ["--set", "gateway.tolerations[0].ky=gpu"],
    /'\/gateway\/tolerations\/0': additional properties 'ky' not allowed/,
  ],
  [
    "a resource that there is not",
    ["--set", "gateway.resources.limits.memry=1Gi"],
    /'\/gateway\/resources\/limits': additional properties 'memry' not/,
  ],
  [
    "one in a container of a pod",
    ["--set-json", 'nats.podTemplate={"spec":{"containers":[{"name":"nats","resources":{"limits":{"cp":"1"}}}]}}'],
    /'\/nats\/podTemplate\/spec\/containers\/0\/resources\/limits': additional properties 'cp' not allowed/,
  ],
  [
    "a typo in a policy's peer",
    ["--set", "networkPolicy.metricsFrom[0].podSelectr.a=b"],
    /'\/networkPolicy\/metricsFrom\/0': additional properties/,
  ],
  [
    "a setting of a base that there is not",
    ["--set", "train.pods.byBase.large.memry=1Gi"],
    /'\/train\/pods\/byBase\/large': additional properties 'memry'/,
  ],
  ["an engine without a base", ["--set", "engines[0].name=a"], /'\/engines\/0': missing property 'base'/],
  [
    "engines without bases",
    ["--set", "engines[0].name=a,engines[0].base=b"],
    /bases.volume is not: set it to the volume that holds the bases/,
  ],
  ["fewer adapters in memory than slots", ["-f", values("engine"), "--set", "engineDefaults.maxCpuLoras=1"], /Raise maxCpuLoras/],
])("refuses %s in a sentence", async (_, args, why) => {
  await expect(render(...args)).rejects.toThrow(why);
});

it("its plain form is up to date (`make manifests` writes it)", async () => {
  const { stdout } = await run("bash", [join(root, "helm/plain-manifests.sh")], { env: { ...process.env, LORALINE_CLUSTER_BIN: bin } });
  expect(readFileSync(join(root, "helm/loraline-plain.yaml"), "utf8")).toBe(stdout);
});

it("its plain form is taken by the API server as it is", async () => {
  for (const name of ["loraline", "loraline-runs"]) {
    await kubectl(["create", "namespace", name]);
    await kubectl(["label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted"]);
  }
  const flags = ["--server-side", "--dry-run=server", "--validate=strict"];
  const { code, out } = await kubectl(["apply", ...flags, "-f", join(root, "helm/loraline-plain.yaml")]);
  expect(code, out).toBe(0);
  expect(out).not.toMatch(/Warning|would violate/);
  for (const kind of ["deployment.apps/loraline-gateway", "statefulset.apps/loraline-nats"]) expect(out).toContain(kind);
});

it("has a password for every user of NATS that the contracts know", async () => {
  const rendered = await render("--show-only", "templates/secrets.yaml");
  for (const user of [...Object.keys(natsPermissions.services), ...Object.keys(natsPermissions.managers)])
    expect(rendered).toMatch(new RegExp(`^  ${user}: [\\w+/=]+$`, "m"));
});
