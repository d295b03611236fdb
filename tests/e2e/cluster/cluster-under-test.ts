/**
 * Shared by tests on the cluster: a namespace of their own with everything that pods of this checkout need, the chart in it, and functions
 * to inspect and to break things. global-setup.ts starts the cluster itself.
 */
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { chmod, mkdir, rm, writeFile } from "node:fs/promises";
import { homedir } from "node:os";
import { delimiter, join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { type SpanCollector, startSpanCollector } from "./span-collector.ts";

export const root = join(import.meta.dirname, "../../..");
const chart = join(root, "helm/loraline");
export const binDir = process.env.LORALINE_CLUSTER_BIN ?? join(homedir(), ".cache/loraline/cluster-bin");
/** Folder of the node that up.sh starts; the ids of its processes stand in PART.pid. */
const nodeDir = join(root, ".cache/cluster");
/** Whether the cluster is the node that infra/cluster/up.sh starts, and not a user's cluster. */
export const isOwnNode = process.env.LORALINE_KUBECONFIG === undefined && process.env.LORALINE_CLUSTER === undefined;
/** Address of this machine for pods. */
export const hostAddress = process.env.LORALINE_TEST_HOST ?? "10.88.0.1";

export type Values = Record<string, unknown>;
/** Any answer of Kubernetes: tests check the parts that they need. */
// oxlint-disable-next-line typescript/no-explicit-any
export type Json = any;

/** Kubeconfig of the cluster that global-setup.ts started; outside of tests (benchmarks) the one that KUBECONFIG names. */
const kubeconfig =
  process.env.VITEST === undefined
    ? (process.env.KUBECONFIG ?? join(nodeDir, "admin.conf"))
    : (await import("vitest")).inject("kubeconfig");

const run = promisify(execFile);
/** Environment of commands that use the cluster. */
export const environment = () => ({
  ...process.env,
  KUBECONFIG: kubeconfig,
  PATH: [binDir, process.env.PATH].join(delimiter),
});

/** @throws Error with what the command said, when it does not end with 0. */
async function command(name: string, args: readonly string[], input?: string): Promise<string> {
  const running = run(name, args, { env: environment(), maxBuffer: 256 * 1024 * 1024 });
  running.child.stdin?.end(input);
  try {
    return (await running).stdout;
  } catch (error) {
    const { stderr = "", stdout = "" } = error as { stderr?: string; stdout?: string };
    throw new Error(`${name} ${args.join(" ")}: ${stderr || stdout || String(error)}`, { cause: error });
  }
}

export const kubectl = (...args: string[]): Promise<string> => command("kubectl", args);
export const helm = (...args: string[]): Promise<string> => command("helm", args);

/**
 * Asks until the answer is neither undefined nor false.
 * @param what the thing that is waited for, for the error message.
 * @param probe may throw as long as it is too early; the last error is part of the message.
 */
export async function eventually<T>(
  what: string,
  probe: () => Promise<T | undefined | false>,
  { timeoutMs = 180_000, everyMs = 700 }: { timeoutMs?: number; everyMs?: number } = {},
): Promise<T> {
  const end = Date.now() + timeoutMs;
  let last: unknown = "never so";
  for (;;) {
    try {
      const answer = await probe();
      if (answer !== undefined && answer !== false) return answer;
    } catch (error) {
      last = error;
    }
    if (Date.now() > end) throw new Error(`${what}: not within ${timeoutMs / 1000} s (${String(last)})`, { cause: last });
    await sleep(everyMs);
  }
}

/**
 * Kills a part of the node with SIGKILL.
 * @param part a name that infra/cluster/up.sh gives, such as `apiserver`, `kubelet`, `etcd`, `containerd`.
 */
export async function killNodePart(part: string): Promise<void> {
  const pid = Number(readFileSync(join(nodeDir, `${part}.pid`), "utf8"));
  process.kill(pid, "SIGKILL");
  while (existsSync(`/proc/${pid}`)) await sleep(20);
}
/** Kills a container's main process, like a crash; its pod stays. Works on our node only, because a first process cannot be killed from inside. */
export async function killContainer(pod: Json, container: string): Promise<void> {
  const status = pod.status.containerStatuses.find((one: Json) => one.name === container);
  const id = (status.containerID as string).replace("containerd://", "");
  await command("ctr", ["-a", "/run/test-containerd/containerd.sock", "-n", "k8s.io", "task", "kill", "--signal", "SIGKILL", id]);
}
/** Starts the parts that do not run, and waits until the node works. */
export async function reviveNode(): Promise<void> {
  await command(join(root, "infra/cluster/up.sh"), [nodeDir]);
}

/** A namespace, and what one asks and does there. */
interface Scope {
  name: string;
  /** Runs kubectl in this namespace. */
  kubectl(...args: string[]): Promise<string>;
  /** `kubectl get ARGS -o json`, in this namespace. */
  get(...args: string[]): Promise<Json>;
  /** Applies objects on the server side. Objects without a namespace get this one. */
  apply(...objects: object[]): Promise<string>;
  /** @returns the matching pods, without those that are being deleted. */
  pods(selector: string): Promise<Json[]>;
  /** The name of the first of those pods. */
  podOf(selector: string): Promise<string>;
  /** Evicts a pod, as `kubectl drain` does. */
  evict(pod: string): Promise<void>;
}

export interface ClusterNamespace extends Scope, AsyncDisposable {
  /** The namespace of its attempts. */
  runs: Scope;
  /** `upgrade --install`: the same command for the first time and all later ones. Does not wait; see `ready`. */
  helmInstall(values?: Values, options?: { release?: string; args?: string[] }): Promise<string>;
  helmUninstall(release?: string): Promise<string>;
  /** Waits until every Deployment and StatefulSet has all its pods ready, all of the newest template. */
  ready(): Promise<void>;
  /** Base URL of a service's port as this machine reaches it. */
  serviceUrl(service: string, port: number): Promise<string>;
  /** @returns a key of a Secret, decoded. */
  secret(name: string, key: string): Promise<string>;
  /** Makes a FineTune on the sample dataset, from the ConfigMap `persona` that `addSample` makes. */
  fineTune(resource: string, spec: object): Promise<void>;
  addSample(): Promise<void>;
  /** Of a FineTune. */
  statusOf(resource: string): Promise<Json>;
  /** Waits for a status of a FineTune; a run that ends with another one fails at once. @returns the status */
  until(resource: string, what: string, so: (status: Json) => boolean, timeoutMs?: number): Promise<Json>;
  /** @returns the gateway's address and the first key. */
  gateway(fullname?: string): Promise<{ url: string; apiKey: string }>;
  /** @returns the answer of the gateway's API. */
  ask(path: string, fullname?: string): Promise<Json>;
  /** Writes descriptions of all objects and logs of all containers below .cache/reports/cluster, to read after a failure. @returns the folder */
  writeLogs(): Promise<string>;
}

function scopeOf(name: string): Scope {
  const inNamespace = (...args: string[]) => kubectl("--namespace", name, ...args);
  const self: Scope = {
    name,
    kubectl: inNamespace,
    get: async (...args) => JSON.parse(await inNamespace("get", ...args, "-o", "json")),
    apply: (...objects) => applyAll(objects, name),
    async pods(selector) {
      const { items } = await self.get("pods", "--selector", selector);
      return (items as Json[]).filter(
        ({ metadata, status }) => metadata.deletionTimestamp === undefined && !["Succeeded", "Failed"].includes(status.phase as string),
      );
    },
    async podOf(selector) {
      const [pod] = await self.pods(selector);
      if (pod === undefined) throw new Error(`no pod in ${name} has ${selector}`);
      return pod.metadata.name as string;
    },
    async evict(pod) {
      const eviction = { apiVersion: "policy/v1", kind: "Eviction", metadata: { name: pod, namespace: name } };
      const path = `/api/v1/namespaces/${name}/pods/${pod}/eviction`;
      await command("kubectl", ["create", "--raw", path, "-f", "-"], JSON.stringify(eviction));
    },
  };
  return self;
}

/**
 * A namespace with restricted Pod Security, the claims of infra/cluster/volumes.sh and a place for NATS' data, and another one like it for
 * attempts. Disposing them writes all logs below .cache/reports/cluster and deletes them.
 */
export async function createNamespace(name: string): Promise<ClusterNamespace> {
  const forwards: (() => void)[] = [];
  for (const namespace of [name, `${name}-runs`]) {
    if (process.env.LORALINE_KUBECONFIG === undefined) await command(join(root, "infra/cluster/volumes.sh"), [namespace]);
    else {
      const labels = { "pod-security.kubernetes.io/enforce": "restricted" };
      await applyAll([{ apiVersion: "v1", kind: "Namespace", metadata: { name: namespace, labels } }]);
    }
  }
  const natsData = join(nodeDir, "data", name);
  if (isOwnNode) await makeNatsVolume(name, natsData);
  const here = scopeOf(name);
  const runs = scopeOf(`${name}-runs`);
  const { kubectl: inNamespace } = here;

  const self: ClusterNamespace = {
    ...here,
    runs,
    async helmInstall(values = {}, { release = "loraline", args = [] } = {}) {
      const all = merged(await chartValues(), values);
      const flags = ["--namespace", name, "--values", "-", ...args];
      return await command("helm", ["upgrade", "--install", release, chart, ...flags], JSON.stringify(all));
    },
    helmUninstall: (release = "loraline") => helm("uninstall", release, "--namespace", name, "--wait", "--timeout", "180s"),
    async ready() {
      const unready = async (): Promise<string[]> => {
        const { items } = await self.get("deployments,statefulsets");
        return (items as Json[]).filter((item) => !isReady(item)).map((item) => `${item.kind} ${item.metadata.name}`);
      };
      await eventually(
        `everything in ${name} ready`,
        async () => {
          const missing = await unready();
          if (missing.length > 0) throw new Error(`not ready: ${missing.join(", ")}`);
          return true;
        },
        { timeoutMs: 840_000, everyMs: 500 },
      );
    },
    async serviceUrl(service, port) {
      if (isOwnNode) {
        const { spec } = await self.get("service", service);
        return `http://${spec.clusterIP as string}:${port}`;
      }
      const child = spawn("kubectl", ["--namespace", name, "port-forward", `service/${service}`, `:${port}`], {
        env: environment(),
        stdio: ["ignore", "pipe", "inherit"],
      });
      forwards.push(() => child.kill());
      const [line] = (await once(createInterface({ input: child.stdout }), "line")) as [string];
      return `http://${/127\.0\.0\.1:\d+/.exec(line)?.[0] ?? line}`;
    },
    async secret(secretName, key) {
      const { data } = await self.get("secret", secretName);
      if (data[key] === undefined)
        throw new Error(`Secret ${secretName} has no key ${key}, only ${Object.keys(data as object).join(", ")}`);
      return Buffer.from(data[key] as string, "base64").toString();
    },
    async fineTune(resource, spec) {
      const dataset = { configMap: { name: "persona", key: "persona.jsonl" } };
      await self.apply({
        apiVersion: "loraline.dev/v1alpha1",
        kind: "FineTune",
        metadata: { name: resource },
        spec: { base, dataset, gate: "none", ...spec },
      });
    },
    async addSample() {
      await inNamespace("create", "configmap", "persona", `--from-file=${join(root, "samples/persona.jsonl")}`);
    },
    statusOf: async (resource) => (await self.get("finetune", resource)).status ?? {},
    async until(resource, what, so, timeoutMs = 600_000) {
      let last: Json;
      const seen = await eventually(
        `${resource} ${what}`,
        async () => {
          last = await self.statusOf(resource);
          if (so(last)) return { status: last };
          return ["Rejected", "Failed", "Cancelled"].includes(last.phase) ? { status: undefined } : undefined;
        },
        { timeoutMs },
      ).catch((error: unknown) => {
        throw new Error(`${String(error)}\n${JSON.stringify(last, null, 1)}`, { cause: error });
      });
      if (seen.status === undefined) throw new Error(`${resource} ended before it was ${what}: ${JSON.stringify(last, null, 1)}`);
      return seen.status;
    },
    async gateway(fullname = "loraline") {
      const [url, apiKey] = await Promise.all([self.serviceUrl(`${fullname}-gateway`, 80), self.secret(`${fullname}-admin-key`, "key")]);
      return { url, apiKey };
    },
    async ask(path, fullname) {
      const { url, apiKey } = await self.gateway(fullname);
      const response = await fetch(`${url}${path}`, { headers: { authorization: `Bearer ${apiKey}` } });
      if (!response.ok) throw new Error(`${path}: ${response.status} ${await response.text()}`);
      return (await response.json()) as Json;
    },
    async writeLogs() {
      const dir = join(root, ".cache/reports/cluster", name);
      await rm(dir, { recursive: true, force: true });
      await mkdir(dir, { recursive: true });
      const keep = async (file: string, text: Promise<string>) => writeFile(join(dir, file), await text.catch(String));
      for (const space of [here, runs]) {
        const of = space === here ? "" : "runs-";
        await keep(
          `${of}objects.txt`,
          space.kubectl("get", "all,pvc,configmaps,networkpolicies,finetunes,adapters", "-o", "wide", "--ignore-not-found"),
        );
        await keep(`${of}events.txt`, space.kubectl("get", "events", "--sort-by=.lastTimestamp"));
        await keep(`${of}pods.txt`, space.kubectl("describe", "pods"));
        const { items } = await space.get("pods");
        for (const pod of items as Json[]) {
          const all = space.kubectl("logs", pod.metadata.name as string, "--all-containers", "--prefix", "--ignore-errors");
          await keep(`${pod.metadata.name as string}.log`, all);
          const statuses = [...(pod.status.initContainerStatuses ?? []), ...(pod.status.containerStatuses ?? [])] as Json[];
          for (const { name: container, restartCount } of statuses.filter(
            (status) => status.restartCount > 0 && status.lastState?.terminated,
          )) {
            const previous = space.kubectl("logs", pod.metadata.name as string, "--container", container as string, "--previous");
            await keep(`${pod.metadata.name as string}.${container as string}.before-restart-${restartCount as number}.log`, previous);
          }
        }
      }
      return dir;
    },
    async [Symbol.asyncDispose]() {
      for (const end of forwards) end();
      await self.writeLogs().catch(() => undefined);
      await helm("list", "--namespace", name, "--short").then(
        async (releases) => {
          for (const release of releases.split("\n").filter(Boolean)) await self.helmUninstall(release).catch(() => undefined);
        },
        () => undefined,
      );
      for (const namespace of [runs.name, name]) await command(join(root, "infra/cluster/volumes.sh"), ["--delete", namespace]);
      await rm(natsData, { recursive: true, force: true });
    },
  };
  return self;
}

/** What the sample's FineTunes are of. */
export const base = "smollm2-135m-instruct";
export const conditionOf = (status: Json, type: string): Json => status.conditions?.find((one: Json) => one.type === type);
/** Of a FineTune's status. */
export const stepOf = ({ step }: Json): number => Number(/^\d+/.exec(step ?? "")?.[0] ?? 0);
/** Selects the pods of a component of the chart. */
export const component = (of: string): string => `app.kubernetes.io/component=${of}`;

/** Collects spans of all pods: pass `url` to the chart's `tracing.otlpEndpoint`. */
export const collectSpans = (): Promise<SpanCollector> => startSpanCollector(hostAddress);

async function applyAll(objects: readonly object[], namespace?: string): Promise<string> {
  const list = { apiVersion: "v1", kind: "List", items: objects };
  const scope = namespace === undefined ? [] : ["--namespace", namespace];
  return await command("kubectl", [...scope, "apply", "--server-side", "--force-conflicts", "-f", "-"], JSON.stringify(list));
}

/** A volume for NATS, because our node has no storage class. The release's claim binds to it, and finds its data again after an uninstall. */
async function makeNatsVolume(namespace: string, path: string): Promise<void> {
  await mkdir(path, { recursive: true });
  await chmod(path, 0o777); // the kubelet gives no hostPath to a pod's group
  await applyAll([
    {
      apiVersion: "v1",
      kind: "PersistentVolume",
      metadata: { name: `${namespace}-nats`, labels: { "loraline.dev/test-namespace": namespace } },
      spec: {
        capacity: { storage: "4Gi" },
        accessModes: ["ReadWriteOnce"],
        storageClassName: "",
        persistentVolumeReclaimPolicy: "Retain",
        claimRef: { namespace, name: "data-loraline-nats-0" },
        hostPath: { path, type: "Directory" },
      },
    },
  ]);
}

/** Of the newest template, all there, all ready. */
function isReady({ spec, status, metadata }: Json): boolean {
  const wanted = spec.replicas as number;
  return (
    status.observedGeneration === metadata.generation &&
    (status.updatedReplicas ?? 0) === wanted &&
    (status.readyReplicas ?? 0) === wanted &&
    (status.replicas ?? 0) === wanted
  );
}

/** Values with others laid over them. */
export const merged = (under: Values, over: Values): Values =>
  Object.fromEntries(
    [...new Set([...Object.keys(under), ...Object.keys(over)])].map((key) => {
      const [a, b] = [under[key], over[key]];
      return [key, isObject(a) && isObject(b) ? merged(a, b) : key in over ? b : a];
    }),
  );
const isObject = (value: unknown): value is Values => typeof value === "object" && value !== null && !Array.isArray(value);

/**
 * The chart's values for a small machine without GPUs and registry: Python and bases from volumes, vLLM's CPU build. For a user's
 * cluster: the file that LORALINE_VALUES names, and LORALINE_IMAGES.
 */
async function chartValues(): Promise<Values> {
  if (process.env.LORALINE_KUBECONFIG !== undefined) {
    const [, registry, tag] = /^(.+):([^:/]+)$/.exec(process.env.LORALINE_IMAGES ?? "") ?? [];
    const file = process.env.LORALINE_VALUES;
    // JSON is YAML as well, and needs no parser here.
    const theirs = file === undefined ? {} : (JSON.parse(readFileSync(file, "utf8")) as Values);
    return merged({ image: { registry, tag } }, theirs);
  }
  const values = JSON.parse(await command("python3", [join(root, "infra/cluster/values.py")])) as Values;
  // Our node has no storage class; the volume is made by hand.
  return isOwnNode ? merged(values, { nats: { persistence: { storageClassName: "" } } }) : values;
}
