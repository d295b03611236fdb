/**
 * Attempts on a real node: no device is free, memory runs out, pods are evicted and preempted. The run names each reason and goes on.
 * Nothing is served here, so the engine has no replicas. The release has another name than in the other tests.
 */
import { afterAll, beforeAll, expect, it } from "vitest";
import {
  base,
  type ClusterNamespace,
  component,
  conditionOf,
  createNamespace,
  eventually,
  type Json,
  kubectl,
  stepOf,
  type Values,
} from "./cluster-under-test.ts";

const name = "attempts-test";
const release = { release: "team" };
const fullname = "team-loraline";
/** A GPU resource for these tests only, so that they do not compete with others for GPUs. The node has one. */
const gpu = "test.loraline.dev/gpu";
const urgent = `${name}-urgent`;

let line: ClusterNamespace;
const values: Values = {
  nats: { persistence: { enabled: false } },
  gateway: { replicas: 1 },
  engines: [{ name: "smollm2", base, replicas: 0 }],
  train: { pods: { gpuResource: gpu, memory: "3Gi" } },
};
const training = { max_steps: 6, per_device_train_batch_size: 2, logging_steps: 1 };

beforeAll(async () => {
  line = await createNamespace(name);
  await line.apply({ apiVersion: "scheduling.k8s.io/v1", kind: "PriorityClass", metadata: { name: urgent }, value: 1000 });
  await setGpus(1);
  await line.addSample();
  await line.helmInstall(values, release);
  await line.ready();
});
afterAll(async () => {
  await kubectl("delete", "priorityclass", urgent, "--ignore-not-found");
  await setGpus(0);
  await line[Symbol.asyncDispose]();
}, 480_000);

/** Sets the number of pretended GPUs in the node's status, because the kubelet would need ten seconds for it. */
async function setGpus(count: number): Promise<void> {
  const [node] = JSON.parse(await kubectl("get", "nodes", "-o", "json")).items as Json[];
  const paths = ["capacity", "allocatable"].map((of) => `/status/${of}/${gpu.replace("/", "~1")}`);
  const known = node.status.capacity[gpu] !== undefined;
  if (count === 0 && !known) return;
  const patch = paths.map((path) => (count === 0 ? { op: "remove", path } : { op: "add", path, value: String(count) }));
  await kubectl("patch", "node", node.metadata.name as string, "--subresource=status", "--type=json", "-p", JSON.stringify(patch));
}

/** Another user's pod that needs the GPU. */
async function other(pod: string, more: object = {}): Promise<void> {
  const { spec } = await line.get("deployment", `${fullname}-gateway`);
  const { image, imagePullPolicy, securityContext } = spec.template.spec.containers[0];
  await line.apply({
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name: pod },
    spec: {
      terminationGracePeriodSeconds: 0,
      securityContext: spec.template.spec.securityContext,
      containers: [
        {
          name: "main",
          image,
          imagePullPolicy,
          securityContext,
          command: ["node", "-e", "setInterval(() => {}, 1000)"],
          resources: { limits: { [gpu]: "1" } },
        },
      ],
      ...more,
    },
  });
}
const runs = async (pod: string) => (await line.get("pod", pod)).status.phase === "Running";

const trained = (resource: string): Promise<Json> =>
  line.until(resource, "trained", (status) => conditionOf(status, "Trained")?.status === "True");
/** @returns the Kubernetes events of a FineTune, as `kubectl describe` shows them, by reason. */
async function eventsOf(resource: string): Promise<Record<string, string>> {
  const { items } = await line.get("events", "--field-selector", `involvedObject.kind=FineTune,involvedObject.name=${resource}`);
  return Object.fromEntries((items as Json[]).map(({ reason, message }) => [reason, message]));
}
/** @returns the messages of a run's events, oldest first. */
async function toldOf(runId: string): Promise<string[]> {
  const { data } = await line.ask(`/v1/fine_tuning/jobs/ftjob-${runId}/events?limit=100`, fullname);
  return (data as Json[]).map(({ message }) => message as string).toReversed();
}

it("memory that is used up is named as the reason, with the limit and what to do", { timeout: 900_000 }, async () => {
  // The whole dataset in one step needs some ten times the memory that attempts have.
  const hungry = { max_steps: 1, per_device_train_batch_size: 64 };
  await line.fineTune("hungry", { adapter: "hungry", training: hungry, tokenize: { packing: false }, max_attempts: 1 });
  await line.kubectl("wait", "finetune/hungry", "--for=condition=Finished", "--timeout=600s");
  const status = await line.statusOf("hungry");
  const said = /the memory of 3Gi was used up\. .*training\.per_device_train_batch_size.*train\.pods\.memory/;
  expect(status).toMatchObject({ phase: "Failed", error: { code: "ATTEMPTS_EXHAUSTED" } });
  expect(status.error.message).toMatch(/^the only attempt ended .* OUT_OF_MEMORY/);
  expect(status.error.message).toMatch(said);
  expect((await eventsOf("hungry"))["OUT_OF_MEMORY"]).toMatch(said);
});

it("two runs on one GPU queue: each says what it waits for, and starts when it is free", { timeout: 900_000 }, async () => {
  await other("busy");
  await eventually("somebody has the GPU", () => runs("busy"));
  await line.fineTune("first", { adapter: "first", training });
  await line.until("first", "waiting", ({ phase }) => phase === "Queued", 120_000);
  await line.fineTune("second", { adapter: "second", training });
  for (const resource of ["first", "second"]) {
    const status = await line.until(resource, "waiting", ({ phase }) => phase === "Queued", 120_000);
    expect(conditionOf(status, "Trained")).toMatchObject({
      status: "Unknown",
      reason: "WAITING_FOR_DEVICE",
      message: expect.stringContaining(`Insufficient ${gpu}`),
    });
    expect(await line.kubectl("get", "ft", resource)).toMatch(/ Queued /);
    expect((await eventsOf(resource))["WAITING_FOR_DEVICE"]).toContain(gpu);
  }

  await line.kubectl("delete", "pod", "busy");
  await line.until("first", "running", ({ phase }) => phase === "Running");
  expect((await line.statusOf("second")).phase).toBe("Queued");
  await trained("first");
  await trained("second");
  for (const adapter of ["first", "second"]) {
    const view = await line.ask(`/v1/loraline/adapters/${adapter}`, fullname);
    expect(view.adapter.versions.map(({ version }: Json) => version)).toEqual([1]);
  }
});

it("the trainer of an attempt has nothing of the courier's, and no Secret of the line is beside it", { timeout: 900_000 }, async () => {
  await line.fineTune("confined", { adapter: "confined", training: { ...training, max_steps: 20 } });
  await line.until("confined", "training", (status) => stepOf(status) >= 1);
  const pod = await line.runs.podOf(component("train-attempt"));
  // As somebody would look around who has taken over the trainer.
  const look = `
    const { readdirSync, readFileSync } = require("node:fs");
    const tried = (what) => { try { return what(); } catch ({ code }) { return code; } };
    const processes = readdirSync("/proc").filter((name) => /^\\d+$/.test(name));
    console.log(JSON.stringify({
      user: process.getuid(),
      credentials: tried(() => readdirSync("/credentials")),
      courier: tried(() => readdirSync("/courier")),
      token: tried(() => readdirSync("/var/run/secrets/kubernetes.io")),
      seen: processes.map((id) => tried(() => readFileSync("/proc/" + id + "/cmdline", "utf8") + readFileSync("/proc/" + id + "/environ", "utf8"))).join(" "),
    }));`;
  const from = async (container: string): Promise<Json> =>
    JSON.parse(await line.runs.kubectl("exec", pod, "--container", container, "--", "node", "-e", look));
  const courier = await from("courier");
  expect(courier.credentials).toContain("nats-password");
  expect(courier.seen).toMatch(/courier-main\.ts.*NATS_PASS_FILE=/s);
  const trainer = await from("trainer");
  expect(trainer).toMatchObject({ credentials: "ENOENT", courier: "ENOENT", token: "ENOENT" });
  expect(trainer.user).not.toBe(courier.user);
  expect(trainer.seen).toContain("trainer-main.ts");
  expect(trainer.seen).not.toMatch(/courier-main|NATS_|S3_|AWS_|COURIER_/);

  const { items } = await line.runs.get("secrets");
  expect((items as Json[]).map(({ metadata }) => metadata.name)).toEqual(["loraline-courier"]);
  const mayTrain = (...words: string[]): Promise<string> =>
    kubectl("auth", "can-i", ...words, "--as", `system:serviceaccount:${name}:${fullname}-train`).catch(String);
  expect(await mayTrain("create", "jobs", "--namespace", line.runs.name)).toMatch(/^yes/);
  for (const words of [
    ["get", "secrets"],
    ["list", "secrets"],
    ["create", "pods/exec"],
  ])
    for (const namespace of [name, line.runs.name]) expect(await mayTrain(...words, "--namespace", namespace)).toMatch(/no\b/);
  for (const words of [
    ["create", "jobs"],
    ["list", "pods"],
    ["delete", "pods"],
    ["get", "configmaps"],
  ])
    expect(await mayTrain(...words, "--namespace", name)).toMatch(/no\b/);
  await trained("confined");
});

it("an attempt that is evicted, then preempted: told apart, and no step is lost", { timeout: 900_000 }, async () => {
  await line.fineTune("moved", { adapter: "moved", training: { ...training, max_steps: 40, save_steps: 4 } });
  const { runId } = await line.until("moved", "past a checkpoint", (status) => stepOf(status) >= 6);

  // The same call as `kubectl drain` and the descheduler use.
  await line.runs.evict(await line.runs.podOf(`${component("train-attempt")},loraline.dev/attempt=1`));
  const resumed = await line.until("moved", "in its second attempt", (status) => status.attempt === 2 && status.phase === "Running");

  await line.until("moved", "further than before", (status) => status.attempt === 2 && stepOf(status) > stepOf(resumed) + 2);
  await other("urgent", { priorityClassName: urgent });
  const waiting = await line.until("moved", "waiting", ({ phase, message }) => phase === "Queued" && /Insufficient/.test(message ?? ""));
  expect(conditionOf(waiting, "Trained").reason).toBe("WAITING_FOR_DEVICE");
  await eventually("the other pod has the GPU", () => runs("urgent"));
  await line.kubectl("delete", "pod", "urgent");
  expect(await trained("moved")).toMatchObject({ attempt: 3, step: "40/40" });

  const events = await eventsOf("moved");
  expect(events["EVICTED"]).toMatch(/evicted.*saved a checkpoint at step \d+/);
  expect(events["PREEMPTED"]).toMatch(/a pod of higher priority took its place.*saved a checkpoint at step \d+/);
  const told = await toldOf(runId);
  const saved = told.flatMap((text) => /ended early: .*saved a checkpoint at step (\d+)/.exec(text)?.[1] ?? []);
  const started = told.flatMap((text) => /job started \(attempt \d+, continuing from step (\d+)\)/.exec(text)?.[1] ?? []);
  expect(saved).toHaveLength(2);
  expect(started).toEqual(saved);
  expect(Number(saved[0])).toBeGreaterThanOrEqual(6);
  expect(told.filter((text) => text.startsWith("Training finished"))).toHaveLength(1);
});

it(
  "an attempt that an earlier release made in its own namespace is followed to its end after the upgrade",
  { timeout: 900_000 },
  async () => {
    const { train } = values as { train: Values };
    await line.helmInstall({ ...values, train: { ...train, namespace: name } }, release);
    await line.ready();
    await line.fineTune("early", { adapter: "early", training: { ...training, max_steps: 30, save_steps: 10 } });
    await line.until("early", "training", (status) => stepOf(status) >= 1);
    const attempt = await line.podOf(component("train-attempt"));

    await line.helmInstall(values, release);
    await line.ready();
    // By now it may have ended; its pod is there in any case.
    expect((await line.get("pods", "--selector", component("train-attempt"))).items).toMatchObject([{ metadata: { name: attempt } }]);
    expect(await trained("early")).toMatchObject({ attempt: 1, step: "30/30" });
    // Job and pod stay for their log, and are no attempt that has still to be followed.
    await eventually("its Job has ended", async () => {
      const { items } = await line.get("jobs", "--selector", component("train-attempt"));
      return items[0].status.succeeded === 1;
    });
    expect(await line.kubectl("logs", attempt, "-c", "trainer")).toMatch(/./);

    // With the next upgrade train has no rights there any more, and makes attempts in the other namespace.
    const role = () => line.kubectl("get", "role", `${fullname}-train-former`, "--ignore-not-found", "-o", "name");
    expect(await role()).toContain("train-former");
    await line.helmInstall(values, release);
    expect(await role()).toBe("");
    await line.ready();
    await line.fineTune("late", { adapter: "late", training });
    await line.until("late", "training", (status) => stepOf(status) >= 1);
    expect(await line.runs.pods(component("train-attempt"))).toHaveLength(1);
  },
);
