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
