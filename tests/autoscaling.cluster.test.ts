/**
 * The autoscalers that docs/operations.md shows, with Kubernetes' own controllers: what a metrics API says becomes a number of replicas. The
 * metrics API is played, behind the API server's aggregator as prometheus-adapter and metrics-server are; so is the kubelet.
 */
import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { createServer, type Server } from "node:https";
import type { AddressInfo } from "node:net";
import { homedir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { type ApiServer, startApiServer, startControllers } from "@loraline/testkit/api-server";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { parseAllDocuments } from "yaml";

const root = join(import.meta.dirname, "..");
const chart = join(root, "helm/loraline");
const bin = process.env.LORALINE_CLUSTER_BIN ?? join(homedir(), ".cache/loraline/cluster-bin");
const namespace = "line";
/** Of Kubernetes' objects what is read here. */
interface Found {
  metadata: { name: string; deletionTimestamp?: string };
  spec?: { replicas?: number };
  status?: { phase?: string; conditions?: { type: string; status: string }[] };
}
const run = promisify(execFile);
const within = { timeout: 60_000, interval: 250 };

describe("autoscalers, by the real controller and a metrics API", () => {
  const owned = new AsyncDisposableStack();
  let api: ApiServer;
  /** What each metric is: of each ready pod, or in all where it is of no pod. */
  const measured = { loraline_nats_consumer_pending: 0, loraline_gateway_in_flight: 0, vllm_num_requests_waiting: 0, cpu: 0 };

  const kubectl = async (args: string[], input?: string): Promise<string> => {
    const running = run(join(bin, "kubectl"), ["--kubeconfig", api.kubeconfig, "--namespace", namespace, ...args], { maxBuffer: 2 ** 26 });
    running.child.stdin?.end(input);
    return (await running).stdout;
  };
  const list = async (...args: string[]): Promise<Found[]> =>
    (JSON.parse(await kubectl(["get", ...args, "-o", "json"])) as { items: Found[] }).items;
  const replicas = async (name: string): Promise<number | undefined> =>
    (JSON.parse(await kubectl(["get", "deployment", name, "-o", "json"])) as Found).spec?.replicas;

  beforeAll(async () => {
    api = owned.use(await startApiServer());
    owned.use(
      startControllers(
        api,
        "deployment-controller",
        "replicaset-controller",
        "horizontal-pod-autoscaler-controller",
        "garbage-collector-controller",
      ),
    );
    await run(join(bin, "kubectl"), ["--kubeconfig", api.kubeconfig, "create", "namespace", namespace]);

    const server = await startMetricsApi();
    owned.defer(() => void server.close());
    const { port } = server.address() as AddressInfo;
    const groups = [
      ["external.metrics.k8s.io", "v1beta1"],
      ["custom.metrics.k8s.io", "v1beta2"],
      ["metrics.k8s.io", "v1beta1"],
    ] as const;
    const service = {
      kind: "Service",
      apiVersion: "v1",
      metadata: { name: "metrics" },
      spec: { type: "ExternalName", externalName: "localhost" },
    };
    const services = groups.map(([group, version]) => ({
      kind: "APIService",
      apiVersion: "apiregistration.k8s.io/v1",
      metadata: { name: `${version}.${group}` },
      spec: {
        group,
        version,
        groupPriorityMinimum: 100,
        versionPriority: 100,
        insecureSkipTLSVerify: true,
        service: { namespace, name: "metrics", port },
      },
    }));
    await kubectl(["apply", "-f", "-"], JSON.stringify({ kind: "List", apiVersion: "v1", items: [service] }));
    await kubectl(["apply", "--namespace=", "-f", "-"], JSON.stringify({ kind: "List", apiVersion: "v1", items: services }));

    const values = (name: string): string => join(chart, "tests/values", `${name}.yaml`);
    const files = ["engine", "autoscaling"].flatMap((name) => ["-f", values(name)]);
    const { stdout } = await run(join(bin, "helm"), ["template", "loraline", chart, "--namespace", namespace, ...files], {
      maxBuffer: 2 ** 26,
    });
    const objects = parseAllDocuments(stdout).map((document) => document.toJS() as { kind: string; metadata: { name: string } });
    const scaled = objects.filter(
      ({ kind, metadata }) =>
        kind === "HorizontalPodAutoscaler" || (kind === "Deployment" && /-(gateway|tokenize|engine-qwen)$/.test(metadata.name)),
    );
    await kubectl(["apply", "-f", "-"], JSON.stringify({ kind: "List", apiVersion: "v1", items: scaled }));

    const kubelet = setInterval(() => void playKubelet().catch(() => undefined), 500);
    owned.defer(() => clearInterval(kubelet));
  });
  afterAll(() => owned.disposeAsync());

  /** Each pod that has no state yet runs, and is ready. */
  async function playKubelet(): Promise<void> {
    const now = new Date().toISOString();
    const conditions = [{ type: "Ready", status: "True", lastTransitionTime: now }];
    for (const { metadata, status } of await list("pods")) {
      if (metadata.deletionTimestamp !== undefined) await kubectl(["delete", "pod", metadata.name, "--force", "--grace-period=0"]);
      else if (status?.phase === "Pending")
        await kubectl([
          "patch",
          "pod",
          metadata.name,
          "--subresource=status",
          "--patch",
          JSON.stringify({ status: { phase: "Running", startTime: now, conditions } }),
        ]);
    }
  }

  async function startMetricsApi(): Promise<Server> {
    const [cert, key] = await Promise.all([readFile(api.certificate.cert), readFile(api.certificate.key)]);
    const timestamp = (): string => new Date().toISOString();
    const server = createServer({ cert, key }, (request, response) => {
      const { pathname, searchParams } = new URL(request.url ?? "/", "https://metrics");
      const answer = (body: object): void => void response.setHeader("content-type", "application/json").end(JSON.stringify(body));
      const [, , group = "", version = "", , , kind, , metric = ""] = pathname.split("/");
      const apiVersion = `${group}/${version}`;
      if (kind === undefined) {
        // Names and kinds that the API server's discovery shows, and by which autoscalers know that it is there.
        const resources = { "external.metrics.k8s.io": "*", "custom.metrics.k8s.io": "pods/*", "metrics.k8s.io": "pods" };
        const name = resources[group as keyof typeof resources];
        const kinds = { "external.metrics.k8s.io": "ExternalMetricValueList", "custom.metrics.k8s.io": "MetricValueList" };
        return answer({
          kind: "APIResourceList",
          apiVersion: "v1",
          groupVersion: apiVersion,
          resources: [
            {
              name,
              singularName: "",
              namespaced: true,
              kind: kinds[group as keyof typeof kinds] ?? "PodMetrics",
              verbs: ["get", "list"],
            },
          ],
        });
      }
      if (group === "external.metrics.k8s.io") {
        const value = measured[kind as keyof typeof measured];
        const labels = Object.fromEntries([(searchParams.get("labelSelector") ?? "").split("=")]) as Record<string, string>;
        const items =
          labels.stream === "CHUNKS" ? [{ metricName: kind, metricLabels: labels, timestamp: timestamp(), value: `${value}` }] : [];
        return answer({ kind: "ExternalMetricValueList", apiVersion, metadata: {}, items });
      }
      void list("pods", "--selector", searchParams.get("labelSelector") ?? "").then(
        (pods) => {
          const names = pods.filter(({ status }) => status?.phase === "Running").map(({ metadata }) => metadata.name);
          if (group === "metrics.k8s.io")
            return answer({
              kind: "PodMetricsList",
              apiVersion,
              metadata: {},
              items: names.map((name) => ({
                metadata: { name, namespace },
                timestamp: timestamp(),
                window: "30s",
                containers: [{ name: "gateway", usage: { cpu: `${measured.cpu}m`, memory: "100Mi" } }],
              })),
            });
          const value = `${measured[metric as keyof typeof measured]}`;
          return answer({
            kind: "MetricValueList",
            apiVersion,
            metadata: {},
            items: names.map((name) => ({
              describedObject: { kind: "Pod", apiVersion: "/v1", namespace, name },
              metric: { name: metric },
              timestamp: timestamp(),
              value,
            })),
          });
        },
        // Its API server ends.
        () => response.writeHead(503).end(),
      );
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    return server;
  }

  const active = async (): Promise<string[]> => {
    const autoscalers = await list("hpa");
    return autoscalers.map(({ metadata, status }) => {
      const condition = status?.conditions?.find(({ type }) => type === "ScalingActive");
      return `${metadata.name} ${condition?.status}`;
    });
  };

  it("each finds its Deployment and its metrics", { timeout: 120_000 }, async () => {
    await expect.poll(active, within).toEqual(["loraline-engine-qwen True", "loraline-gateway True", "loraline-tokenize True"]);
    expect(await Promise.all(["loraline-tokenize", "loraline-engine-qwen"].map(replicas))).toEqual([1, 1]);
  });

  it("chunks that nobody has taken start tokenizers, and are worked off by fewer", { timeout: 120_000 }, async () => {
    measured.loraline_nats_consumer_pending = 100; // 32 for a replica
    await expect.poll(() => replicas("loraline-tokenize"), within).toBe(4);
    measured.loraline_nats_consumer_pending = 0;
    await expect.poll(() => replicas("loraline-tokenize"), within).toBe(1);
  });

  it("requests in flight start gateways, and so does a processor that is busy", { timeout: 120_000 }, async () => {
    const least = (await replicas("loraline-gateway")) ?? 0;
    measured.loraline_gateway_in_flight = 300; // 200 for a replica
    await expect.poll(() => replicas("loraline-gateway"), within).toBeGreaterThan(least);
    measured.loraline_gateway_in_flight = 0;
    await expect.poll(() => replicas("loraline-gateway"), within).toBe(least);
    measured.cpu = 4000;
    await expect.poll(() => replicas("loraline-gateway"), within).toBeGreaterThan(least);
    measured.cpu = 0;
  });

  it("requests that wait start engines, up to what is allowed; one that was scaled to zero stays there", { timeout: 120_000 }, async () => {
    measured.vllm_num_requests_waiting = 40; // 4 for a replica
    await expect.poll(() => replicas("loraline-engine-qwen"), within).toBe(4);
    await kubectl(["scale", "deployment/loraline-engine-qwen", "--replicas=0"]);
    await expect.poll(active, within).toEqual(["loraline-engine-qwen False", "loraline-gateway True", "loraline-tokenize True"]);
    expect(await replicas("loraline-engine-qwen")).toBe(0);
  });
});
