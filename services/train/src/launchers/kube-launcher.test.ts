import { type Kube, KubeError } from "@loraline/kube";
import { createLog } from "@loraline/runtime";
import { expect, it } from "vitest";
import { trainPodSettings } from "./job-manifest.ts";
import { createKubeLauncher } from "./kube-launcher.ts";

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

it("looks at a long line once, not once for each run, until something changes", async () => {
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
  expect(await launcher.observe()).toBe(seen);
  const changed = new Promise<void>((resolve) => launcher.watch(() => resolve()));
  come.resolve();
  await changed;
  expect(await launcher.observe()).toHaveLength(2);
  await launcher[Symbol.asyncDispose]();
});
