/**
 * `make bench-cluster`: measures on a real cluster (the one of KUBECONFIG, or this machine's) the time from a FineTune to the container
 * of its Job. The same for a bare Job of the same image shows how much of it is Kubernetes' own time.
 * The chart is installed in a namespace of its own, without engines, and removed afterwards; BENCH_NAMESPACE=NAME uses one that is installed
 * there. BENCH_RUNS: how many of each (default 7).
 */
import { type ChildProcess, spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { createNamespace, environment } from "../e2e/cluster/cluster-under-test.ts";
import { eventually, root } from "../line-under-test.ts";
import { percentile, type Row } from "./table.ts";

const runs = Number(process.env["BENCH_RUNS"] ?? 7);
const given = process.env["BENCH_NAMESPACE"];
/** A new name each time, because objects of an earlier one may still be ending. */
const namespace = given ?? `bench-${Date.now().toString(36)}`;
const base = "smollm2-135m-instruct";

interface Pod {
  metadata: { name: string; labels?: Record<string, string> };
  spec: { nodeName?: string };
  status?: { containerStatuses?: { state?: { running?: object; terminated?: object } }[] };
}
interface FineTune {
  metadata: { name: string };
  status?: { phase?: string; runId?: string; datasetId?: string; conditions?: { type: string; status: string; message?: string }[] };
}

export async function benchCluster(): Promise<Row[]> {
  await using owned = new AsyncDisposableStack();
  if (given === undefined) {
    console.error(`bench: installing the chart in namespace ${namespace} …`);
    const bench = owned.use(await createNamespace(namespace));
    await bench.helmInstall({ engines: [{ name: "smollm2", base, replicas: 0 }] });
    await bench.ready();
  }
  const api = await kubectlProxy(owned);
  const fineTunes = `/apis/loraline.dev/v1alpha1/namespaces/${namespace}/finetunes`;

  /* a watch of pods */
  const seen = new Map<string, { pod: Pod; made: number; bound: number | undefined; running: number | undefined }>();
  await api.watch<Pod>(`/api/v1/namespaces/${namespace}/pods`, owned, (type, pod) => {
    const now = performance.now();
    const { name } = pod.metadata;
    if (type === "DELETED") return void seen.delete(name);
    const known = seen.get(name) ?? { pod, made: now, bound: undefined, running: undefined };
    known.pod = pod;
    if (pod.spec.nodeName !== undefined) known.bound ??= now;
    if (pod.status?.containerStatuses?.some(({ state }) => state?.running ?? state?.terminated)) known.running ??= now;
    seen.set(name, known);
  });
  const started = (label: string, value: string) =>
    eventually(`the pod of ${value} runs`, 120_000, () => {
      const found = [...seen.values()].find(({ pod, running }) => running !== undefined && pod.metadata.labels?.[label] === value);
      return found?.running === undefined ? undefined : { made: found.made, bound: found.bound ?? found.running, running: found.running };
    });
  const gone = (label: string, value: string) =>
    eventually(`the pod of ${value} is gone`, 180_000, () =>
      [...seen.values()].some(({ pod }) => pod.metadata.labels?.[label] === value) ? undefined : true,
    );

  /* a watch of FineTunes */
  const latest = new Map<string, FineTune>();
  const phases = new Map<string, Map<string, number>>();
  await api.watch<FineTune>(fineTunes, owned, (_type, object) => {
    const { name } = object.metadata;
    latest.set(name, object);
    const known = phases.get(name) ?? new Map<string, number>();
    const { phase, conditions = [] } = object.status ?? {};
    const passed = conditions.filter(({ status }) => status === "True").map(({ type }) => type);
    for (const each of [...(phase === undefined ? [] : [phase]), ...passed]) if (!known.has(each)) known.set(each, performance.now());
    phases.set(name, known);
  });
  const runOf = (name: string) =>
    eventually(`${name} is asked for`, 60_000, () => {
      const object = latest.get(name);
      const refusal = object?.status?.conditions?.find(({ type, status }) => type === "Accepted" && status === "False");
      if (refusal !== undefined && object?.status?.phase !== "Pending") throw new Error(`${name} is refused: ${refusal.message}`);
      return object?.status?.runId === undefined ? undefined : object.status;
    });
  const apply = (name: string, dataset: object) =>
    api.post(fineTunes, {
      apiVersion: "loraline.dev/v1alpha1",
      kind: "FineTune",
      metadata: { name },
      spec: { base, adapter: name, dataset, training: { max_steps: 1000 } },
    });

  /* a dataset that is ingested and tokenized before, so that the time of messages is measured and not that of bytes */
  await api.post(`/api/v1/namespaces/${namespace}/configmaps`, {
    apiVersion: "v1",
    kind: "ConfigMap",
    metadata: { name: "bench-rows" },
    data: { "rows.jsonl": readFileSync(join(root, "samples/persona.jsonl"), "utf8") },
  });
  owned.defer(async () => void (await api.remove(`/api/v1/namespaces/${namespace}/configmaps/bench-rows`)));
  const measure = async (name: string, dataset: object) => {
    const from = performance.now();
    await apply(name, dataset);
    const { runId = "", datasetId } = await runOf(name);
    const pod = await started("loraline.dev/run", runId.toLowerCase());
    const tokenized = phases.get(name)?.get("Tokenized") ?? pod.made;
    await api.remove(`${fineTunes}/${name}`);
    await gone("loraline.dev/run", runId.toLowerCase());
    return { datasetId, tokenized: tokenized - from, made: pod.made - from, bound: pod.bound - from, running: pod.running - from };
  };
  const stamp = Date.now().toString(36);
  const { datasetId } = await measure(`bench-${stamp}-0`, { configMap: { name: "bench-rows", key: "rows.jsonl" } });
  if (datasetId === undefined) throw new Error("the FineTune does not say which dataset it made");

  /* the same pod without Loraline: the time that Kubernetes takes itself */
  const template = [...seen.values()].find(({ pod }) => pod.metadata.name.includes("gateway"))?.pod as { spec: object } | undefined;
  if (template === undefined) throw new Error("no gateway pod to take the image from");
  const image = (template.spec as { containers: { image: string }[] }).containers[0]?.image.replace("/services:", "/trainer:");
  const ours: Awaited<ReturnType<typeof measure>>[] = [];
  const bare: { made: number; bound: number; running: number }[] = [];
  // In turns, so that other load of the machine affects both.
  for (let n = 1; n <= runs; n++) {
    ours.push(await measure(`bench-${stamp}-${n}`, { id: datasetId }));
    const name = `bare-${stamp}-${n}`;
    const from = performance.now();
    await api.post(`/apis/batch/v1/namespaces/${namespace}/jobs`, bareJob(name, image ?? ""));
    const pod = await started("bench", name);
    await api.remove(`/apis/batch/v1/namespaces/${namespace}/jobs/${name}?propagationPolicy=Background`);
    await gone("bench", name);
    bare.push({ made: pod.made - from, bound: pod.bound - from, running: pod.running - from });
  }

  const p = (values: readonly number[], rank = 50): string => `${(Number(percentile(values, rank)) / 1000).toFixed(2)} s`;
  const pick = <K extends string>(rows: readonly Record<K, number>[], key: K): number[] => rows.map((row) => row[key]);
  const overhead = Number(percentile(pick(ours, "made"), 50)) - Number(percentile(pick(bare, "made"), 50));
  return [
    {
      what: "Cluster: FineTune created → the container of its Job's pod runs",
      value: `p50 ${p(pick(ours, "running"))}`,
      detail: `${runs} runs on an ingested dataset, one after the other, p95 ${p(pick(ours, "running"), 95)}; status says Tokenized after ${p(pick(ours, "tokenized"))}, the pod exists after ${p(pick(ours, "made"))}`,
    },
    {
      what: "Cluster: a bare Job of the same image, created → its container runs",
      value: `p50 ${p(pick(bare, "running"))}`,
      detail: `Kubernetes' own share (Job controller, scheduler, kubelet, container runtime): the pod exists after ${p(pick(bare, "made"))}`,
    },
    {
      what: "Cluster: overhead of the line alone",
      value: `p50 ${(overhead / 1000).toFixed(2)} s`,
      detail:
        "until the pod exists, less what a bare Job takes to that: operator, NATS, tokenize (tokens are there already), train controller",
    },
  ];
}

const bareJob = (name: string, image: string): object => ({
  apiVersion: "batch/v1",
  kind: "Job",
  metadata: { name },
  spec: {
    backoffLimit: 0,
    template: {
      metadata: { labels: { bench: name } },
      spec: {
        restartPolicy: "Never",
        automountServiceAccountToken: false,
        enableServiceLinks: false,
        terminationGracePeriodSeconds: 0,
        securityContext: { runAsNonRoot: true, runAsUser: 65532, seccompProfile: { type: "RuntimeDefault" } },
        containers: [
          {
            name: "main",
            image,
            imagePullPolicy: "IfNotPresent",
            command: ["sleep", "600"],
            resources: { requests: { cpu: "100m", "nvidia.com/gpu": "1" }, limits: { "nvidia.com/gpu": "1" } },
            securityContext: { allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: { drop: ["ALL"] } },
          },
        ],
      },
    },
  },
});

/** The API server without certificates, and without a kubectl to start for each call. */
async function kubectlProxy(owned: AsyncDisposableStack) {
  const proxy: ChildProcess = spawn("kubectl", ["proxy", "--port=0"], { env: environment(), stdio: ["ignore", "pipe", "inherit"] });
  owned.defer(() => void proxy.kill());
  let url = "";
  for await (const line of createInterface({ input: proxy.stdout! })) {
    url = /127\.0\.0\.1:\d+/.exec(line)?.[0] ?? "";
    if (url !== "") break;
  }
  if (url === "") throw new Error("kubectl proxy does not start; is KUBECONFIG right, and the cluster up (make cluster-up)?");
  const call = async (method: string, path: string, body?: object): Promise<unknown> => {
    const response = await fetch(`http://${url}${path}`, {
      method,
      ...(body === undefined ? {} : { body: JSON.stringify(body), headers: { "content-type": "application/json" } }),
    });
    const text = await response.text();
    if (!response.ok && !(method === "DELETE" && response.status === 404))
      throw new Error(`${method} ${path}: HTTP ${response.status}: ${text.slice(0, 500)}`);
    return JSON.parse(text) as unknown;
  };
  return {
    post: (path: string, body: object) => call("POST", path, body),
    remove: (path: string) => call("DELETE", path),
    /** Calls back with what there is, then with each change. */
    async watch<T>(path: string, until: AsyncDisposableStack, on: (type: string, object: T) => void): Promise<void> {
      const stopping = new AbortController();
      until.defer(() => stopping.abort());
      const follow = async (began: () => void): Promise<void> => {
        const response = await fetch(`http://${url}${path}?watch=1&resourceVersion=0`, { signal: stopping.signal });
        if (!response.ok || response.body === null) throw new Error(`watch ${path}: HTTP ${response.status}`);
        began();
        let rest = "";
        for await (const part of response.body.pipeThrough(new TextDecoderStream())) {
          const lines = (rest + part).split("\n");
          rest = lines.pop() ?? "";
          for (const line of lines) {
            const { type, object } = JSON.parse(line) as { type: string; object: T };
            if (type === "ERROR") throw new Error(line);
            on(type, object);
          }
        }
      };
      const { promise, resolve, reject } = Promise.withResolvers<void>();
      void (async () => {
        while (!stopping.signal.aborted) {
          await follow(resolve).catch((error: unknown) => {
            reject(error);
            if (!stopping.signal.aborted) console.error(`bench: watch ${path} begins again:`, String(error));
          });
          await new Promise((again) => setTimeout(again, 100));
        }
      })();
      await promise;
    },
  };
}
