import { type Method, runSpec } from "@loraline/contracts";
import { describe, expect, it } from "vitest";
import { jobManifest, trainPodSettings } from "./job-manifest.ts";
import { attemptSpec, type AttemptSpec } from "../attempt/attempt-spec.ts";

const settings = trainPodSettings.parse({ namespace: "line", image: "trainer:1", courier: { env: [{ name: "SECRET", value: "s3cret" }] } });
const attemptOf = (spec: object): AttemptSpec =>
  attemptSpec.parse({
    version: 1,
    tenant: "acme",
    runId: "01KB0000000000000000000000",
    attempt: 1,
    name: "train-01kb0000000000000000000000-1",
    runSpec: runSpec.parse({ base: "b", adapter: "pirate", ...spec }),
    tokens: { kind: "tokens", digest: `sha256:${"a".repeat(64)}`, size: 1 },
    resume: null,
    traceparent: null,
  });
const carried = (attempt: AttemptSpec, by = settings): string =>
  jobManifest(attempt, by).spec?.template.spec?.containers[0]?.env?.find(({ name }) => name === "COURIER_ATTEMPT")?.value ?? "";

/** What a kubelet makes of a value (k8s.io/kubernetes/third_party/forked/golang/expansion): `$$` is a dollar, `$(NAME)` a variable. */
const expanded = (value: string): string =>
  value.replaceAll(/\$\$|\$\((\w+)\)/g, (all, name?: string) => (all === "$$" ? "$" : name === "SECRET" ? "s3cret" : all));

describe("the spec of an attempt, in its pod's environment", () => {
  it("comes to the courier as it was, whatever a run's own text looks like to Kubernetes", () => {
    const attempt = attemptOf({ dataset: "01KB0000000000000000000001", lora: { target_modules: ["$(SECRET)", "q_proj$$"] } });
    const machine = { nodes: 1, processes: 1, device: "cuda", graceSeconds: 120 };
    expect(attemptSpec.parse(JSON.parse(expanded(carried(attempt))))).toEqual({ ...attempt, machine });
  });

  it("says what it runs on: a process for each GPU, and none but a GPU will do, unless GPUs are only pretended", () => {
    const machineOf = (spec: object, more: object = {}) =>
      attemptSpec.parse(
        JSON.parse(expanded(carried(attemptOf({ dataset: "01KB0000000000000000000001", ...spec }), { ...settings, ...more }))),
      ).machine;
    expect(machineOf({ gpus: 4, nodes: 2 })).toMatchObject({ nodes: 2, processes: 4, device: "cuda" });
    expect(machineOf({ gpus: 2 }, { device: "cpu" })).toMatchObject({ processes: 2, device: "cpu" });
    expect(machineOf({ gpus: 0 })).toMatchObject({ processes: 1, device: "auto" });
  });

  it("is no longer than Linux lets a variable be, whatever prompts a run brings along", () => {
    const blob = { kind: "adapter-file", digest: `sha256:${"a".repeat(64)}`, size: 1 };
    const trained = attemptOf({ dataset: "01KB0000000000000000000001", tokenize: { system: "海".repeat(100_000) } });
    const adopted = attemptOf({
      import: { source: "x", config: blob, weights: blob, probes: Array.from({ length: 16 }, () => "海".repeat(4000)) },
    });
    const withoutProbes = (method: Method): Method =>
      method.type === "import" ? { type: "import", source: "x", config: method.config, weights: method.weights } : method;
    for (const attempt of [trained, adopted]) {
      expect(Buffer.byteLength(carried(attempt))).toBeLessThan(100 * 1024);
      const { runSpec: spec } = attemptSpec.parse(JSON.parse(expanded(carried(attempt))));
      const { lora, training, method } = attempt.runSpec;
      expect([spec.lora, spec.training, spec.method]).toEqual([lora, training, withoutProbes(method)]);
    }
  });
});

it("belongs to the release's ConfigMap, so that no attempt keeps a GPU when the release is gone", () => {
  const owned = { ...settings, owner: "loraline-train-pods", ownerUid: "u1" };
  const attempt = attemptOf({ dataset: "01KB0000000000000000000001" });
  const reference = { apiVersion: "v1", kind: "ConfigMap", name: "loraline-train-pods", uid: "u1" };
  expect(jobManifest(attempt, owned).metadata?.ownerReferences).toEqual([reference]);
  expect(jobManifest(attempt, settings).metadata).not.toHaveProperty("ownerReferences");
});

describe("Kueue's queue of an attempt", () => {
  const jobOf = (more: object, spec: object = {}) =>
    jobManifest(attemptOf({ dataset: "01KB0000000000000000000001", ...spec }), { ...settings, ...more });
  const queueOf = (more: object) => jobOf(more).metadata?.labels?.["kueue.x-k8s.io/queue-name"];

  it("is one for all, one for each tenant by its name, or the tenant's own", () => {
    expect(queueOf({ queueName: "training" })).toBe("training");
    expect(queueOf({ queueName: "loraline-{tenant}" })).toBe("loraline-acme");
    expect(queueOf({ queueName: "loraline-{tenant}", queues: { acme: "gpus-of-acme", beta: "b" } })).toBe("gpus-of-acme");
    expect(jobOf({ queues: { acme: "gpus-of-acme" } }).spec?.suspend).toBe(true);
  });

  it("is none, and the Job is not suspended, where the tenant has none", () => {
    const job = jobOf({ queues: { beta: "b" } });
    expect(job.spec).not.toHaveProperty("suspend");
    expect(job.metadata?.labels).not.toHaveProperty(["kueue.x-k8s.io/queue-name"]);
  });

  it("orders by the PriorityClass of the run's priority, which the pods have", () => {
    const classes = { priorityClassName: "usual", priorityClasses: { "1": "urgent" } };
    const classOf = (spec: object) => jobOf(classes, spec).spec?.template.spec?.priorityClassName;
    expect([classOf({ priority: 1 }), classOf({ priority: 2 }), classOf({})]).toEqual(["urgent", "usual", "usual"]);
  });
});

describe("what a run asks for by its profile", () => {
  const given = trainPodSettings.parse({
    ...settings,
    queueName: "usual",
    queues: { acme: "acmes" },
    priorityClasses: { "1": "urgent" },
    nodeSelector: { gpu: "l4" },
    byBase: { llama: { memory: "64Gi", cpu: "8", jobLabels: { of: "base" } } },
    profiles: {
      large: { memory: "400Gi", nodeSelector: { gpu: "h200" }, queueName: "large", priorityClassName: "batch", jobLabels: { team: "ml" } },
      tidy: { cpu: "2" },
    },
  });
  const of = (spec: object) => {
    const job = jobManifest(attemptOf({ dataset: "01KB0000000000000000000001", base: "llama", priority: 1, ...spec }), given);
    const pod = job.spec?.template.spec;
    return {
      labels: job.metadata?.labels,
      needs: pod?.initContainers?.[0]?.resources?.requests,
      nodes: pod?.nodeSelector,
      priorityClass: pod?.priorityClassName,
    };
  };
  const queue = "kueue.x-k8s.io/queue-name";

  it("comes before what its base, its tenant and its priority say, and leaves the rest as it is", () => {
    expect(of({ profile: "large" })).toMatchObject({
      labels: { [queue]: "large", of: "base", team: "ml" },
      needs: { memory: "400Gi", cpu: "8" },
      nodes: { gpu: "h200" },
      priorityClass: "batch",
    });
    expect(of({ profile: "tidy" })).toMatchObject({
      labels: { [queue]: "acmes" },
      needs: { memory: "64Gi", cpu: "2" },
      nodes: { gpu: "l4" },
      priorityClass: "urgent",
    });
    expect(of({})).toMatchObject({ labels: { [queue]: "acmes" }, needs: { memory: "64Gi", cpu: "8" }, priorityClass: "urgent" });
  });

  it("is nothing else once the operator has taken it away", () => {
    expect(() => of({ profile: "huge" })).toThrow(expect.objectContaining({ code: "PROFILE_NOT_ALLOWED" }));
  });
});

describe("what differs by base", () => {
  const given = trainPodSettings.parse({
    ...settings,
    jobLabels: { team: "ml" },
    jobAnnotations: { "alpha.jobset.sigs.k8s.io/exclusive-topology": "rack", "loraline.dev/adapter": "not this" },
    tenantNamespaces: { acme: "acme-runs" },
    byBase: {
      large: {
        memory: "200Gi",
        gpus: 8,
        queueName: "large",
        nodeSelector: { gpu: "h200" },
        podTemplate: { spec: { runtimeClassName: "nvidia" } },
      },
    },
  });
  const jobOf = (base: string) => jobManifest(attemptOf({ base, dataset: "01KB0000000000000000000001" }), given);

  it("holds for its runs and for no others", () => {
    const [large, other] = [jobOf("large"), jobOf("b")];
    const podOf = ({ spec }: typeof large) => spec?.template.spec;
    expect(podOf(large)?.initContainers?.[0]?.resources?.limits).toMatchObject({ memory: "200Gi", "nvidia.com/gpu": "8" });
    expect(podOf(large)).toMatchObject({ nodeSelector: { gpu: "h200" }, runtimeClassName: "nvidia" });
    expect([large.spec?.suspend, large.metadata?.labels?.["kueue.x-k8s.io/queue-name"]]).toEqual([true, "large"]);
    expect(podOf(other)?.initContainers?.[0]?.resources?.limits).toMatchObject({ memory: "32Gi", "nvidia.com/gpu": "1" });
    expect([other.spec?.suspend, podOf(other)?.runtimeClassName, podOf(other)?.nodeSelector]).toEqual([undefined, undefined, {}]);
  });

  it("a Job has the labels and annotations that are set for it, but for Loraline's own, in its tenant's namespace", () => {
    const { metadata, spec } = jobOf("b");
    expect(metadata).toMatchObject({
      namespace: "acme-runs",
      labels: { team: "ml", "loraline.dev/tenant": "acme" },
      annotations: { "alpha.jobset.sigs.k8s.io/exclusive-topology": "rack", "loraline.dev/adapter": "acme/pirate" },
    });
    expect(spec?.template.metadata?.labels).not.toHaveProperty("team");
  });
});

describe("courier and trainer", () => {
  const secret = { name: "NATS_PASS_FILE", value: "/credentials/nats-password" };
  const given = trainPodSettings.parse({
    namespace: "line-runs",
    image: "trainer:1",
    gpus: 2,
    credentials: "loraline-courier",
    env: [{ name: "OMP_NUM_THREADS", value: "2" }],
    courier: { env: [secret] },
  });
  const made = jobManifest(attemptOf({ dataset: "01KB0000000000000000000001" }), given);
  const pod = made.spec?.template.spec;
  const [trainer] = pod?.initContainers ?? [];
  const [courier] = pod?.containers ?? [];

  it("are two containers with users of their own, which share one folder and no processes", () => {
    expect([pod?.initContainers?.length, pod?.containers.length, pod?.shareProcessNamespace]).toEqual([1, 1, false]);
    expect(trainer).toMatchObject({ name: "trainer", restartPolicy: "Always" });
    const userOf = (one: typeof trainer) => one?.securityContext?.runAsUser;
    expect(userOf(trainer)).not.toBe(userOf(courier));
    const volumesOf = (one: typeof trainer) => new Set(one?.volumeMounts?.map(({ name }) => name));
    expect([...volumesOf(trainer).intersection(volumesOf(courier))]).toEqual(["work"]);
    expect(trainer?.resources?.limits?.["nvidia.com/gpu"]).toBe("2");
  });

  it("only the courier has credentials, and none is in an environment; neither has a token", () => {
    const has = (one: typeof trainer) => one?.volumeMounts?.some(({ name }) => name === "credentials");
    expect([has(courier), has(trainer)]).toEqual([true, false]);
    expect(courier?.env).toContainEqual(secret);
    expect(JSON.stringify(trainer)).not.toMatch(/NATS|S3_|AWS|COURIER_|credentials/);
    expect(pod?.automountServiceAccountToken).toBe(false);
    expect(made.metadata?.namespace).toBe("line-runs");
  });
});
