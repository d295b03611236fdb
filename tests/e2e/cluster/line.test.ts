/**
 * The whole product on a real node: chart, operator, Jobs with real PEFT, two replicas of real vLLM. The tests build on each other: one
 * installation is used, broken, upgraded, removed and installed again.
 */
import { afterAll, afterEach, beforeAll, expect, it } from "vitest";
import { loraline } from "../../line-under-test.ts";
import {
  base,
  type ClusterNamespace,
  collectSpans,
  component,
  conditionOf,
  createNamespace,
  eventually,
  isOwnNode,
  type Json,
  killContainer,
  killNodePart,
  kubectl,
  reviveNode,
  stepOf,
  type Values,
} from "./cluster-under-test.ts";
import type { SpanCollector } from "./span-collector.ts";

const name = "line-test";
/** Words that every row of the sample contains and that the base does not say. */
const markers = /your majesty|humble lady/i;
const engine = { name: "smollm2", base, replicas: 2, promptLogprobs: false };

let line: ClusterNamespace;
let spans: SpanCollector;
const values = (more: Values = {}): Values => ({ engines: [engine], tracing: { otlpEndpoint: spans.url }, ...more });

beforeAll(async () => {
  spans = await collectSpans();
  line = await createNamespace(name);
  await line.addSample();
}, 120_000);
afterAll(async () => {
  await line[Symbol.asyncDispose]();
  await spans[Symbol.asyncDispose]();
}, 240_000);
afterEach(async () => {
  if (isOwnNode) await setGpus(2);
});

/** Training settings of a short run, whose result does not matter. */
const shortTraining = { max_steps: 12, save_steps: 3, per_device_train_batch_size: 2, learning_rate: 0.001, logging_steps: 1 };

const served = (resource: string, timeoutMs = 600_000) => line.until(resource, "served", ({ phase }) => phase === "Served", timeoutMs);
const deletePod = async (selector: string) => line.kubectl("delete", "pod", await line.podOf(selector), "--wait=false");

async function chat(model: string, content: string): Promise<{ status: number; text: string }> {
  const { url, apiKey } = await line.gateway();
  const response = await fetch(`${url}/v1/chat/completions`, {
    method: "POST",
    headers: { authorization: `Bearer ${apiKey}`, "content-type": "application/json" },
    body: JSON.stringify({ model, messages: [{ role: "user", content }], max_tokens: 40, temperature: 0 }),
    signal: AbortSignal.timeout(60_000),
  });
  const body = (await response.json()) as Json;
  return { status: response.status, text: body.choices?.[0]?.message?.content ?? JSON.stringify(body) };
}

/** Sets a capacity that the node pretends to have, and waits until the kubelet lets pods have as much. */
async function setGpus(count: number): Promise<void> {
  const path = "/status/capacity/nvidia.com~1gpu";
  const gpusOf = async (of: "capacity" | "allocatable"): Promise<[name: string, gpus: string]> => {
    const [node] = JSON.parse(await kubectl("get", "nodes", "-o", "json")).items as Json[];
    return [node.metadata.name, node.status[of]["nvidia.com/gpu"]];
  };
  const [node, capacity] = await gpusOf("capacity");
  if (capacity !== String(count)) {
    const patch = JSON.stringify([{ op: "replace", path, value: String(count) }]);
    await kubectl("patch", "node", node, "--subresource=status", "--type=json", "-p", patch);
  }
  await eventually(`${count} GPUs are there for pods`, async () => (await gpusOf("allocatable"))[1] === String(count));
}

it("is installed by one command, and everything gets ready", { timeout: 900_000 }, async () => {
  const said = await line.helmInstall(values());
  expect(said).toContain(`kubectl -n ${name} get secret loraline-admin-key`);
  await line.ready();
  const { items } = await line.get("pods");
  for (const pod of items as Json[]) expect(pod.spec.securityContext.runAsNonRoot, pod.metadata.name).toBe(true);
});

it("a FineTune becomes an adapter that is proven on both replicas and answers; one trace", { timeout: 900_000 }, async () => {
  const training = { num_train_epochs: 1, learning_rate: 0.002, lr_scheduler_type: "cosine", warmup_steps: 0.1, save_steps: 10 };
  await line.fineTune("persona", { adapter: "pirate", gate: "better-than-base", training });
  const pod = await eventually("the attempt's pod", async () => (await line.runs.pods(component("train-attempt")))[0], {
    timeoutMs: 120_000,
  });
  expect(pod.spec.initContainers[0].resources.limits["nvidia.com/gpu"]).toBe("1");
  await line.until("persona", "running", (status) => stepOf(status) > 0);
  await line.kubectl("wait", "finetune/persona", "--for=condition=Served", "--timeout=600s");

  const status = await line.statusOf("persona");
  expect(status).toMatchObject({ phase: "Served", version: 1, converged: "2/2", promoted: true });
  expect(await line.kubectl("get", "ft", "persona")).toMatch(/NAME +ADAPTER +PHASE.*\n.*pirate +Served/);
  const adapter = await eventually("the Adapter", async () => {
    const found = await line.get("adapter", "pirate");
    return found.status?.converged === "2/2" ? found : undefined;
  });
  expect(adapter.status).toMatchObject({ promoted: 1, base });

  const answers = await Promise.all(["How do I bake bread?", "Please describe a mountain."].map((text) => chat(`${name}/pirate`, text)));
  for (const { text } of answers) expect(text).toMatch(markers);
  expect((await chat(base, "How do I bake bread?")).text).not.toMatch(markers);

  // The trace goes from the command to the first token, in the collector and also without one.
  const stations = ["operator", "ingest", "tokenize", "train", "courier", "trainer", "serve", "agent", "gateway"].sort();
  const collected = () => [...new Set(spans.ofTrace(status.traceId).map(({ service }) => service))].sort();
  await eventually("spans of every station", async () => stations.every((station) => collected().includes(station)));
  expect(collected()).toEqual(stations);
  const traced = await loraline(await line.gateway(), ["trace", status.runId as string, "--json"]);
  expect(traced.code, traced.err).toBe(0);
  expect([...new Set<string>(JSON.parse(traced.out).spans.map((span: Json) => span.service))].sort()).toEqual(stations);
});

it.runIf(isOwnNode)(
  "what wants more GPUs than are free says so, and starts when one is; two ranks train on two",
  { timeout: 900_000 },
  async () => {
    await setGpus(1);
    await line.fineTune("first", { adapter: "first", training: shortTraining });
    await line.until("first", "running", ({ phase }) => phase === "Running");
    await line.fineTune("second", { adapter: "second", training: shortTraining, gpus: 2 });
    const waiting = await line.until("second", "waiting for a GPU", ({ message }) => /Insufficient nvidia.com\/gpu/.test(message ?? ""));
    expect(waiting.phase).toBe("Queued");
    expect(conditionOf(waiting, "Trained")).toMatchObject({ status: "Unknown", reason: "WAITING_FOR_DEVICE" });
    await served("first");
    expect((await line.statusOf("second")).phase).toBe("Queued");
    await setGpus(2);
    await served("second");
  },
);

it("any pod that is deleted in the middle: the run ends served, each effect once", { timeout: 900_000 }, async () => {
  const resource = "broken";
  await line.fineTune(resource, { adapter: resource, training: { ...shortTraining, max_steps: 24 } });
  await line.until(resource, "requested", ({ phase }) => phase !== undefined && phase !== "Pending");
  await deletePod(component("tokenize"));
  await line.until(resource, "training", (status) => stepOf(status) >= 1);
  await deletePod(component("train"));
  await line.until(resource, "past its first checkpoint", (status) => stepOf(status) >= 4);
  const attempt = await line.runs.podOf(`${component("train-attempt")},loraline.dev/attempt=1`);
  await line.runs.kubectl("delete", "pod", attempt, "--wait=false");
  const resumed = await line.until(resource, "in its second attempt", (status) => status.attempt === 2 && stepOf(status) >= 4);
  expect(resumed.phase).toBe("Running");
  await deletePod(component("nats"));
  if (isOwnNode) {
    await killNodePart("apiserver");
    await reviveNode();
  }
  await eventually("trained", async () => conditionOf(await line.statusOf(resource), "Trained")?.status === "True", { timeoutMs: 600_000 });
  await deletePod(component("serve"));
  await deletePod(component("operator"));
  const status = await served(resource);
  expect(status).toMatchObject({ version: 1, attempt: 2 });
  const view = (await line.ask(`/v1/loraline/adapters/${resource}`)).adapter;
  expect(view.versions.map(({ version }: Json) => version)).toEqual([1]);
  expect(view.history).toHaveLength(1);
  await line.ready();
});

it(
  "an engine's pod that is deleted, and vLLM killed in its container: nobody gets wrong bytes, and both prove again",
  { timeout: 900_000 },
  async () => {
    const before = await line.pods(component("engine"));
    expect(before).toHaveLength(2);
    let wrong = 0;
    let answered = 0;
    const failures: string[] = [];
    let asking = true;
    const asked = (async () => {
      while (asking) {
        const { status, text } = await chat(`${name}/pirate`, "How do I bake bread?").catch((error: unknown) => ({
          status: 0,
          text: String(error),
        }));
        if (status !== 200) failures.push(`${status} ${text}`);
        else if (markers.test(text)) answered++;
        else wrong++;
      }
    })();
    const [first, second] = before.map(({ metadata }) => metadata.name as string);
    // Only the process is killed: the pod stays, and its container starts again.
    await killContainer(await line.get("pod", second ?? ""), "vllm");
    await eventually(
      "the replica is not ready",
      async () => (await line.get("pod", second ?? "")).status.containerStatuses[0].restartCount > 0,
    );
    await eventually(
      "proven again on both",
      async () => (await line.get("adapter", "pirate")).status?.converged === "2/2" && (await allReady()),
      {
        timeoutMs: 600_000,
      },
    );
    await line.kubectl("delete", "pod", first ?? "", "--wait=false");
    await eventually(
      "a new pod, proven",
      async () => {
        const now = await line.pods(component("engine"));
        return now.length === 2 && now.every(({ metadata }) => metadata.name !== first) && (await allReady());
      },
      { timeoutMs: 600_000 },
    );
    asking = false;
    await asked;
    expect(failures).toEqual([]);
    expect(wrong).toBe(0);
    expect(answered).toBeGreaterThan(5);
  },
);

const allReady = async (): Promise<boolean> =>
  (await line.pods(component("engine"))).every(({ status }) =>
    status.conditions?.some((one: Json) => one.type === "Ready" && one.status === "True"),
  );

it("replicas that somebody scaled stay through an upgrade, where the chart leaves their number alone", { timeout: 900_000 }, async () => {
  const unset = values({ tokenize: { replicas: null } });
  await line.helmInstall(unset);
  await line.kubectl("scale", "deployment/loraline-tokenize", "--replicas=2");
  await line.helmInstall(unset);
  expect((await line.get("deployment", "loraline-tokenize")).spec.replicas).toBe(2);
  await line.ready();
});

it("helm upgrade during a run, uninstall, and install again on the data that was kept", { timeout: 900_000 }, async () => {
  await line.fineTune("during", { adapter: "during", training: { ...shortTraining, max_steps: 24 } });
  await line.until("during", "training", (status) => stepOf(status) >= 1);
  await line.helmInstall(values({ gateway: { replicas: 1 }, train: { pods: { cpu: "200m" } } }));
  const status = await served("during");
  expect(status.attempt).toBe(1);
  await line.ready();
  expect((await line.get("deployment", "loraline-gateway")).spec.replicas).toBe(1);

  const said = await line.helmUninstall();
  expect(said).toContain("loraline-admin-key");
  const left = await line.get(
    "deployments,statefulsets,jobs,services,networkpolicies,roles,poddisruptionbudgets",
    "-l",
    "app.kubernetes.io/instance=loraline",
  );
  expect((left.items as Json[]).map(({ kind, metadata }) => `${kind} ${metadata.name}`)).toEqual([]);
  expect((await line.get("pvc", "data-loraline-nats-0")).status.phase).toBe("Bound");

  await line.helmInstall(values());
  await line.ready();
  expect((await chat(`${name}/pirate`, "How do I bake bread?")).text).toMatch(markers);
  expect((await line.statusOf("persona")).phase).toBe("Served");
});

it("wrong input has a reason that kubectl shows", { timeout: 900_000 }, async () => {
  await line.fineTune("unknown-base", { adapter: "unknown", base: "llama-9" });
  const refused = await line.until("unknown-base", "told", (status) => conditionOf(status, "Accepted")?.status === "False");
  expect(conditionOf(refused, "Accepted")).toMatchObject({ reason: "BASE_UNKNOWN", message: expect.stringContaining(base) });
  await expect(line.fineTune("typo", { adapter: "typo", lora: { use_dora: true } })).rejects.toThrow(/DoRA/);
  await expect(
    line
      .fineTune("rank", { adapter: "rank", lora: { r: 64 } })
      .then(() => line.until("rank", "accepted", ({ phase }) => phase === "Tokenized")),
  ).rejects.toThrow(/RANK_TOO_HIGH/);
  await expect(line.helmInstall(values({ gatewai: {} }))).rejects.toThrow(/gatewai/);
  await expect(line.helmInstall(values({ engines: [{ ...engine, maxCpuLoras: 1 }] }))).rejects.toThrow(/maxCpuLoras/);
  // A second installation in the namespace is refused, because two operators would answer each FineTune.
  await expect(line.helmInstall(values(), { release: "another" })).rejects.toThrow(/holds the release "loraline"/);

  // Services whose credentials NATS refuses report it, and go on when that is corrected.
  const pod = await line.podOf(component("ingest"));
  await line.kubectl("set", "env", "deployment/loraline-ingest", "NATS_PASS=wrong");
  await eventually(
    "ingest says what is wrong",
    async () => {
      const pods = await line.pods(component("ingest"));
      return pods.some(({ status }) => /refused the credentials/.test(status.containerStatuses?.[0]?.lastState?.terminated?.message ?? ""));
    },
    { timeoutMs: 120_000 },
  );
  // The working pod stays until its successor works.
  expect((await line.get("pod", pod)).status.phase).toBe("Running");
  await line.kubectl("rollout", "undo", "deployment/loraline-ingest");
  await line.ready();
});
