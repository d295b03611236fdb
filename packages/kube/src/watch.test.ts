import type { V1ConfigMap } from "@kubernetes/client-node";
import { createLog } from "@loraline/runtime";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, it } from "vitest";
import { type Kube, KubeError, resource } from "./kube.ts";
import { watch } from "./watch.ts";

const configMaps = resource<V1ConfigMap>("v1", "ConfigMap", "configmaps");

it.each([
  ["ends every watch at once, as a proxy does that cannot hold it", undefined],
  ["has forgotten every version at once", new KubeError(410, "Expired", "too old resource version")],
] as const)("does not press a server that %s", async (_what, error) => {
  let asked = 0;
  const kube = {
    async list() {
      await sleep(1);
      return { items: [], resourceVersion: String(++asked) };
    },
    async *events() {
      asked++;
      await sleep(1);
      if (error !== undefined) throw error;
      yield* [];
    },
  } as unknown as Kube;
  const ending = new AbortController();
  const log = createLog({ service: "test", level: "silent" });
  const done = watch(kube, configMaps, { signal: ending.signal, log, onChange: () => {} });
  await sleep(1000);
  ending.abort();
  await done;
  expect(asked).toBeGreaterThan(1);
  expect(asked).toBeLessThan(10);
});
