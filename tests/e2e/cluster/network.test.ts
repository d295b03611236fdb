/**
 * The chart's NetworkPolicies in a network that enforces them: connections are tried from pods. NATS' three servers, their clients and the
 * gateway use TLS here, with certificates as cert-manager would make them.
 */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { runSpec } from "../../../packages/contracts/src/index.ts";
import { jobManifest, trainPodSettings } from "../../../services/train/src/launchers/job-manifest.ts";
import { attemptSpec } from "../../../services/train/src/attempt/attempt-spec.ts";
import { type ClusterNamespace, createNamespace, type Json, kubectl, type Values } from "./cluster-under-test.ts";

const name = "network-test";
/** Namespaces: of a tenant whose programs use NATS, of a reader of metrics, and of a stranger. */
const others = { tenant: `${name}-tenant`, monitoring: `${name}-monitoring`, elsewhere: `${name}-elsewhere` };
/** Made by the chart. */
const attempts = `${name}-attempts`;
const base = "smollm2-135m-instruct";
const node = (process.env.LORALINE_IMAGES ?? "docker.io/loraline/x:dev").replace(/(\/x)?:([^:/]+)$/, "/services:$2");
const listen = (port: number) => `
  require("node:http").createServer((_, response) => response.end()).listen(${port}, "0.0.0.0");
  process.on("SIGTERM", () => process.exit()); // a container's first process is not ended by it otherwise`;

/** A program that listens on an engine's ports, beside the real agent. */
const standIn = {
  name: "stand-in",
  base,
  image: node,
  command: ["node", "-e", listen(8000), "--"],
  gpus: 0,
  resources: { requests: { cpu: "10m", memory: "64Mi" }, limits: { memory: "256Mi" } },
  volumes: [],
  volumeMounts: [],
};
const namespaced = (namespace: string) => ({ namespaceSelector: { matchLabels: { "kubernetes.io/metadata.name": namespace } } });
const small = { requests: { cpu: "10m", memory: "64Mi" } };
const values = (networkPolicy: Values, more: Values = {}): Values => ({
  engines: [standIn],
  gateway: { replicas: 1, tls: { secret: "gateway-tls" } },
  trust: { caSecret: "our-ca" },
  // The stand-in cannot report that no requests arrive any more, so the hook is left out.
  agent: { env: [{ name: "AGENT_LEAVE_S", value: "0" }] },
  // Three servers, so that there are connections between them.
  nats: {
    replicas: 3,
    tls: { secret: "nats-tls" },
    tenants: [{ name: "acme", namespaces: [others.tenant] }],
    persistence: { enabled: false },
    resources: small,
  },
  networkPolicy: { metricsFrom: [namespaced(others.monitoring)], ...networkPolicy },
  train: { namespace: attempts, createNamespace: true, ...(more["train"] as Values | undefined) },
});

let line: ClusterNamespace;
beforeAll(async () => {
  line = await createNamespace(name);
  for (const namespace of Object.values(others)) {
    await kubectl("create", "namespace", namespace);
    await pod(namespace, "somebody", {});
  }
  await pod(name, "stranger", {});
  const certificates = makeCertificates({
    "nats-tls": [`loraline-nats.${name}.svc`, `*.loraline-nats-headless.${name}.svc`],
    "gateway-tls": [`loraline-gateway.${name}.svc`],
    "our-ca": ["unused"],
  });
  for (const [secret, stringData] of Object.entries(certificates))
    await line.apply({ apiVersion: "v1", kind: "Secret", metadata: { name: secret }, stringData });
  await line.helmInstall(values({}));
  const settings = trainPodSettings.parse(JSON.parse((await line.get("configmap", "loraline-train-pods")).data["pods.json"] as string));
  for (const attempt of [1, 2]) {
    const job = attemptSpec.parse({
      version: 1,
      tenant: name,
      runId: "01KB0000000000000000000000",
      attempt,
      name: `train-${attempt}`,
      runSpec: runSpec.parse({ base, adapter: "a", dataset: "01KB0000000000000000000001" }),
      tokens: { kind: "tokens", digest: `sha256:${"a".repeat(64)}`, size: 1 },
      resume: null,
      traceparent: null,
    });
    await pod(attempts, `attempt-${attempt}`, jobManifest(job, settings).spec?.template.metadata?.labels ?? {});
  }
}, 900_000);
afterAll(async () => {
  const rest = kubectl("delete", "namespace", attempts, ...Object.values(others), "--ignore-not-found", "--timeout=120s");
  await Promise.all([line[Symbol.asyncDispose](), rest]);
}, 900_000);

/** @returns for each name the files of its Secret: a certificate for these hosts, its key, and the authority of all of them. */
function makeCertificates(hosts: Record<string, string[]>): Record<string, Record<string, string>> {
  const dir = mkdtempSync(join(tmpdir(), "loraline-certificates-"));
  try {
    const openssl = (...args: string[]) => execFileSync("openssl", args, { cwd: dir, stdio: "ignore" });
    const read = (file: string): string => readFileSync(join(dir, file), "utf8");
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", "/CN=our-ca");
    return Object.fromEntries(
      Object.entries(hosts).map(([of, names]) => {
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", `${of}.key`, "-out", `${of}.csr`, "-subj", `/CN=${of}`);
        const alternatives = names.map((host) => `DNS:${host}`).join(",");
        writeFileSync(join(dir, `${of}.ext`), `subjectAltName=${alternatives}\nextendedKeyUsage=serverAuth,clientAuth\n`);
        const by = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2"];
        openssl("x509", "-req", "-in", `${of}.csr`, ...by, "-out", `${of}.crt`, "-extfile", `${of}.ext`);
        return [of, { "tls.crt": read(`${of}.crt`), "tls.key": read(`${of}.key`), "ca.crt": read("ca.crt") }];
      }),
    );
  } finally {
    rmSync(dir, { recursive: true });
  }
}

/** A program that listens on port 9000 and does nothing. */
async function pod(namespace: string, podName: string, labels: Record<string, string>): Promise<void> {
  const container = {
    name: "main",
    image: node,
    command: ["node", "-e", listen(9000)],
    resources: small,
    securityContext: { allowPrivilegeEscalation: false, capabilities: { drop: ["ALL"] } },
  };
  const spec = {
    securityContext: { runAsNonRoot: true, seccompProfile: { type: "RuntimeDefault" } },
    automountServiceAccountToken: false,
    terminationGracePeriodSeconds: 0,
    containers: [container],
  };
  const overrides = `--overrides=${JSON.stringify({ metadata: { labels }, spec })}`;
  await kubectl("--namespace", namespace, "run", podName, `--image=${node}`, overrides);
}

interface Place {
  namespace: string;
  pod: string;
  container: string;
}
interface Target {
  host: string;
  port: number;
  /** The pod that it runs in; connections of a pod to itself are not tried. */
  of?: string;
}
/** Script for a pod: tries which targets accept a connection from there. */
const connectToAll = `
  const open = ({ host, port }) =>
    new Promise((resolve) => {
      const socket = require("node:net").connect({ host, port, timeout: 5000 });
      for (const [event, outcome] of [["connect", true], ["error", false], ["timeout", false]]) socket.on(event, () => resolve(outcome));
    });
  Promise.all(JSON.parse(process.argv[1]).map(open)).then((opened) => {
    console.log(JSON.stringify(opened));
    process.exit();
  });`;

/** @returns for each target the pods that reach it now. */
async function reached(): Promise<Record<string, string[]>> {
  const running = async (component: string): Promise<Json> => {
    const pods = await line.pods(`app.kubernetes.io/component=${component}`);
    const [found] = pods.filter(({ status }) => status.phase === "Running");
    if (found === undefined) throw new Error(`no pod of ${component} runs`);
    return found;
  };
  const [gateway, engine, operator, nats] = await Promise.all(["gateway", "engine", "operator", "nats"].map(running));
  const stranger = await line.get("pod", "stranger");
  const attemptPod = async (podName: string): Promise<Json> =>
    JSON.parse(await kubectl("--namespace", attempts, "get", "pod", podName, "-o", "json"));
  const [attempt, another] = await Promise.all(["attempt-1", "attempt-2"].map(attemptPod));
  const inside = (of: Json, container: string): Place => ({ namespace: name, pod: of.metadata.name as string, container });
  const at = (of: Json, port: number): Target => ({ host: of.status.podIP as string, port });

  const places: Record<string, Place> = {
    gateway: inside(gateway, "gateway"),
    engine: inside(engine, "agent"),
    operator: inside(operator, "operator"),
    attempt: { ...inside(attempt, "main"), namespace: attempts },
    stranger: inside(stranger, "main"),
    ...Object.fromEntries(Object.entries(others).map(([who, namespace]) => [who, { namespace, pod: "somebody", container: "main" }])),
  };
  const targets: Record<string, Target> = {
    // Targets are given by name, so DNS must work too.
    "the API": { host: `loraline-gateway.${name}.svc.cluster.local`, port: 80, of: "gateway" },
    NATS: { host: `loraline-nats.${name}.svc.cluster.local`, port: 4222 },
    vLLM: { ...at(engine, 8000), of: "engine" },
    "the agent's health": { ...at(engine, 8081), of: "engine" },
    "the gateway's metrics": { ...at(gateway, 9464), of: "gateway" },
    "the gateway's health": { ...at(gateway, 8081), of: "gateway" },
    "the operator's metrics": { ...at(operator, 9464), of: "operator" },
    "the operator's health": { ...at(operator, 8081), of: "operator" },
    "NATS' monitor": at(nats, 8222),
    "NATS' routes": at(nats, 6222),
    "another attempt": at(another, 9000),
    "outside: the API server": { host: "kubernetes.default.svc.cluster.local", port: 443 },
    "outside: a pod": { ...at(stranger, 9000), of: "stranger" },
  };
  const asked = JSON.stringify(Object.values(targets));
  const opened = await Promise.all(
    Object.entries(places).map(async ([who, { namespace, pod: podName, container }]) => {
      const said = await kubectl(
        "--namespace",
        namespace,
        "exec",
        podName,
        "--container",
        container,
        "--",
        "node",
        "-e",
        connectToAll,
        asked,
      );
      return { who, open: JSON.parse(said) as boolean[] };
    }),
  );
  return Object.fromEntries(
    Object.entries(targets).map(([what, { of }], index) => [
      what,
      opened.filter(({ who, open }) => open[index] && who !== of).map(({ who }) => who),
    ]),
  );
}
const everybody = ["gateway", "engine", "operator", "attempt", "stranger", ...Object.keys(others)];
const but = (...left: string[]) => everybody.filter((who) => !left.includes(who));
/** A network takes a moment to see a new pod or policy. */
const patience = { timeout: 60_000, interval: 1000 };

it("under its policies the line gets ready, and nobody reaches what is not theirs to reach", { timeout: 900_000 }, async () => {
  // The stand-in engine loads no adapters, so its agent never becomes ready.
  const services = "app.kubernetes.io/component!=engine";
  await line.kubectl("wait", "deployment", "--selector", services, "--for=condition=Available", "--timeout=600s");
  await expect.poll(reached, patience).toEqual({
    // An attempt reaches NATS and nothing else, since there are neither S3 nor a collector here.
    "the API": but("gateway", "attempt"),
    NATS: ["gateway", "engine", "operator", "attempt", "tenant"],
    vLLM: ["gateway", "monitoring"],
    "the agent's health": [],
    "the gateway's metrics": ["monitoring"],
    "the gateway's health": [],
    "the operator's metrics": ["monitoring"],
    "the operator's health": [],
    "NATS' monitor": ["monitoring"],
    "NATS' routes": [],
    "another attempt": [],
    // Of the line only train and operator reach the API server; the gateway fetches from public addresses alone.
    "outside: the API server": but("gateway", "engine", "attempt"),
    "outside: a pod": but("gateway", "engine", "operator", "attempt", "stranger"),
  });
});

it("NATS takes no client without TLS, and the gateway answers by https, each with its certificate", async () => {
  const script = `
    const { connect } = await import("node:net");
    const info = await new Promise((resolve) => connect(4222, "loraline-nats.${name}.svc").once("data", (data) => resolve(String(data))));
    const { tls_required } = JSON.parse(info.slice("INFO ".length));
    const ask = (url) => fetch(url).then(({ status }) => status, () => "refused");
    // The authority is trusted through trust.caSecret.
    const https = await ask("https://loraline-gateway.${name}.svc:80/healthz");
    const http = await ask("http://loraline-gateway.${name}.svc:80/healthz");
    console.log(JSON.stringify({ tls_required, https, http }));
    process.exit();`;
  const operator = await line.podOf("app.kubernetes.io/component=operator");
  const said = await line.kubectl("exec", operator, "--", "node", "--input-type=module", "-e", script);
  expect(JSON.parse(said)).toEqual({ tls_required: true, https: 200, http: "refused" });
});

it("attempts on several nodes reach each other; the API is for whom it is opened", { timeout: 900_000 }, async () => {
  // The cluster needs no JobSet here, because train, which would watch JobSets, does not run.
  const forNodes = { train: { replicas: 0, pods: { jobSet: true } } };
  await line.helmInstall(values({ gatewayFrom: [namespaced(others.elsewhere)], metricsFrom: [], egress: { enabled: false } }, forNodes));
  await expect.poll(reached, patience).toEqual({
    "the API": ["elsewhere"],
    NATS: ["gateway", "engine", "operator", "attempt", "tenant"],
    vLLM: ["gateway"],
    "the agent's health": [],
    "the gateway's metrics": [],
    "the gateway's health": [],
    "the operator's metrics": [],
    "the operator's health": [],
    "NATS' monitor": [],
    "NATS' routes": [],
    "another attempt": ["attempt"],
    "outside: the API server": everybody,
    "outside: a pod": but("stranger"),
  });
});

it("those were the policies: without them everybody reaches everything", { timeout: 900_000 }, async () => {
  await line.helmInstall(values({ enabled: false }));
  await expect.poll(reached, patience).toEqual({
    "the API": but("gateway"),
    NATS: everybody,
    vLLM: but("engine"),
    "the agent's health": but("engine"),
    "the gateway's metrics": but("gateway"),
    "the gateway's health": but("gateway"),
    "the operator's metrics": but("operator"),
    "the operator's health": but("operator"),
    "NATS' monitor": everybody,
    "NATS' routes": everybody,
    "another attempt": everybody,
    "outside: the API server": everybody,
    "outside: a pod": but("stranger"),
  });
});
