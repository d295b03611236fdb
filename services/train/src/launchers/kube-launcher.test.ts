import { runSpec } from "@loraline/contracts";
import { type Kube, KubeError } from "@loraline/kube";
import { createLog } from "@loraline/runtime";
import { expect, it } from "vitest";
import { trainPodSettings } from "./job-manifest.ts";
import { createKubeLauncher } from "./kube-launcher.ts";

/** A watch in which nothing happens. */
async function* noEvents(signal: AbortSignal): AsyncGenerator<never> {
  yield* [];
  await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
}

it("gives up with its signal while the API server does not let it list anything", { timeout: 5000 }, async () => {
  const refused = async () => {
    throw new KubeError(403, "Forbidden", "pods is forbidden");
  };
  const kube = { list: refused } as unknown as Kube;
  const settings = trainPodSettings.parse({ namespace: "line", image: "trainer:1" });
  const launcher = await createKubeLauncher({
    kube,
    settings,
    log: createLog({ service: "test", level: "silent" }),
    signal: AbortSignal.timeout(200),
  });
  await launcher[Symbol.asyncDispose]();
  expect(await launcher.observe()).toEqual([]);
});

it("judges an attempt again only when something of it changed, however many others there are", async () => {
  const waiting = (attempt: number) => ({
    metadata: {
      namespace: "line",
      name: `train-01kb0000000000000000000000-${attempt}`,
      uid: String(attempt),
      resourceVersion: String(attempt),
      labels: {
        "app.kubernetes.io/component": "train-attempt",
        "loraline.dev/tenant": "acme",
        "loraline.dev/run": "01kb0000000000000000000000",
        "loraline.dev/attempt": String(attempt),
      },
    },
  });
  const come = Promise.withResolvers<void>();
  const kube = {
    list: async ({ kind }: { kind: string }) => ({ items: kind === "Job" ? [waiting(1)] : [], resourceVersion: "1" }),
    async *events({ kind }: { kind: string }, { signal }: { signal: AbortSignal }) {
      await come.promise;
      if (kind === "Job") yield { type: "ADDED", object: waiting(2) };
      await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
    },
  } as unknown as Kube;
  const settings = trainPodSettings.parse({ namespace: "line", image: "trainer:1" });
  const launcher = await createKubeLauncher({ kube, settings, log: createLog({ service: "test", level: "silent" }) });
  const seen = await launcher.observe();
  expect(seen).toHaveLength(1);
  expect((await launcher.observe())[0]).toBe(seen[0]);
  const changed = new Promise<void>((resolve) => launcher.watch(() => resolve()));
  come.resolve();
  await changed;
  const both = await launcher.observe();
  expect(both).toHaveLength(2);
  expect(both[0]).toBe(seen[0]);
  expect(await launcher.attemptsOf({ tenant: "acme", runId: "01KB0000000000000000000000" })).toEqual(both);
  expect(await launcher.attemptsOf({ tenant: "globex", runId: "01KB0000000000000000000000" })).toEqual([]);
  await launcher[Symbol.asyncDispose]();
});

it.each([
  ["a Job", 1, "Job"],
  ["a JobSet", 2, "JobSet"],
])("makes %s that is observed at once, and ends by its uid exactly what it made", async (_what, nodes, kind) => {
  const name = "train-01kb0000000000000000000000-1";
  const deleted: unknown[] = [];
  const kube = {
    list: async () => ({ items: [], resourceVersion: "1" }),
    events: (_of: unknown, { signal }: { signal: AbortSignal }) => noEvents(signal),
    create: async (of: { kind: string }, object: { metadata: object }) => ({
      ...object,
      metadata: { ...object.metadata, uid: `uid-of-${of.kind}` },
    }),
    delete: async (of: { kind: string }, at: object, options: object) => deleted.push({ kind: of.kind, ...at, ...options }),
  } as unknown as Kube;
  const settings = trainPodSettings.parse({ namespace: "line", image: "trainer:1", jobSet: true });
  await using launcher = await createKubeLauncher({ kube, settings, log: createLog({ service: "test", level: "silent" }) });
  await launcher.launch({
    version: 1,
    tenant: "acme",
    runId: "01KB0000000000000000000000",
    attempt: 1,
    name,
    runSpec: runSpec.parse({ base: "b", adapter: "pirate", dataset: "01KB0000000000000000000001", nodes }),
    tokens: { kind: "tokens", digest: `sha256:${"a".repeat(64)}`, size: 1 },
    init: null,
    twins: [] as { name: string; digest: `sha256:${string}` }[],
    resume: null,
    traceparent: null,
  });
  expect(await launcher.observe()).toMatchObject([{ name, tenant: "acme", attempt: 1, phase: "pending" }]);
  await launcher.stop(name);
  await launcher.remove(name);
  const its = { kind, namespace: "line", name, uid: `uid-of-${kind}` };
  expect(deleted).toEqual([
    { ...its, propagation: "Foreground" },
    { ...its, propagation: "Background" },
  ]);
});

it("takes pods whose Job is gone for an attempt until it is removed, and then deletes the pods", async () => {
  const name = "train-01kb0000000000000000000000-1";
  const pod = {
    metadata: {
      namespace: "line",
      name: `${name}-abcde`,
      uid: "uid-of-pod",
      resourceVersion: "1",
      labels: {
        "app.kubernetes.io/component": "train-attempt",
        "batch.kubernetes.io/job-name": name,
        "loraline.dev/tenant": "acme",
        "loraline.dev/run": "01kb0000000000000000000000",
        "loraline.dev/attempt": "1",
      },
    },
    status: { phase: "Running" },
  };
  const deleted: unknown[] = [];
  const kube = {
    list: async ({ kind }: { kind: string }) => ({ items: kind === "Pod" ? [pod] : [], resourceVersion: "1" }),
    events: (_of: unknown, { signal }: { signal: AbortSignal }) => noEvents(signal),
    delete: async (of: { kind: string }, at: object, options: object) => deleted.push({ kind: of.kind, ...at, ...options }),
  } as unknown as Kube;
  const settings = trainPodSettings.parse({ namespace: "line", image: "trainer:1" });
  await using launcher = await createKubeLauncher({ kube, settings, log: createLog({ service: "test", level: "silent" }) });
  expect(await launcher.observe()).toMatchObject([{ name, tenant: "acme", runId: "01KB0000000000000000000000" }]);
  await launcher.remove(name);
  expect(await launcher.observe()).toEqual([]);
  expect(deleted).toEqual([{ kind: "Pod", namespace: "line", name: `${name}-abcde`, uid: "uid-of-pod" }]);
});

it("follows an attempt that an earlier release made in another namespace, ends it there, and makes it nowhere twice", async () => {
  const name = "train-01kb0000000000000000000000-1";
  const old = {
    metadata: {
      namespace: "line",
      name,
      uid: "uid-of-old",
      resourceVersion: "1",
      labels: {
        "app.kubernetes.io/component": "train-attempt",
        "loraline.dev/tenant": "acme",
        "loraline.dev/run": "01kb0000000000000000000000",
        "loraline.dev/attempt": "1",
      },
    },
  };
  const deleted: unknown[] = [];
  const created: unknown[] = [];
  const kube = {
    async list({ kind }: { kind: string }, { namespace }: { namespace: string }) {
      // The right to look there ended with the upgrade after the next.
      if (namespace === "long-ago") throw new KubeError(403, "Forbidden", "jobs is forbidden");
      return { items: kind === "Job" && namespace === "line" ? [old] : [], resourceVersion: "1" };
    },
    events: (_of: unknown, { signal }: { signal: AbortSignal }) => noEvents(signal),
    create: async (_of: unknown, object: object) => {
      created.push(object);
      return object;
    },
    delete: async (_of: unknown, at: object, options: object) => deleted.push({ ...at, ...options }),
  } as unknown as Kube;
  const settings = trainPodSettings.parse({ namespace: "line-runs", formerNamespaces: ["line", "long-ago"], image: "trainer:1" });
  await using launcher = await createKubeLauncher({ kube, settings, log: createLog({ service: "test", level: "silent" }) });
  expect(await launcher.observe()).toMatchObject([{ name, tenant: "acme", attempt: 1 }]);
  const request = {
    version: 1,
    tenant: "acme",
    runId: "01KB0000000000000000000000",
    attempt: 1,
    name,
    runSpec: runSpec.parse({ base: "b", adapter: "pirate", dataset: "01KB0000000000000000000001" }),
    tokens: { kind: "tokens", digest: `sha256:${"a".repeat(64)}`, size: 1 },
    init: null,
    twins: [] as { name: string; digest: `sha256:${string}` }[],
    resume: null,
    traceparent: null,
  } as const;
  expect(await launcher.launch(request)).toBe(true);
  expect(created).toEqual([]);
  expect(await launcher.launch({ ...request, attempt: 2, name: name.replace(/1$/, "2") })).toBe(true);
  expect(created).toMatchObject([{ metadata: { namespace: "line-runs", name: name.replace(/1$/, "2") } }]);
  await launcher.stop(name);
  expect(deleted).toEqual([{ namespace: "line", name, uid: "uid-of-old", propagation: "Foreground" }]);
});
