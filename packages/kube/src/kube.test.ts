import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { V1ConfigMap } from "@kubernetes/client-node";
import { expect, it } from "vitest";
import { createKube, resource } from "./kube.ts";

it("says which API server does not answer, and why", async () => {
  const dir = await mkdtemp(join(tmpdir(), "loraline-kube-"));
  // Takes connections and drops them, as a balancer without servers behind it.
  const balancer = createServer((socket: Socket) => socket.destroy()).listen(0, "127.0.0.1");
  try {
    await new Promise((resolve) => balancer.once("listening", resolve));
    const server = `https://127.0.0.1:${(balancer.address() as { port: number }).port}`;
    const kubeconfig = join(dir, "conf");
    const config = {
      clusters: [{ name: "c", cluster: { server } }],
      users: [{ name: "u", user: { token: "t" } }],
      contexts: [{ name: "x", context: { cluster: "c", user: "u" } }],
      "current-context": "x",
    };
    await writeFile(kubeconfig, JSON.stringify({ apiVersion: "v1", kind: "Config", ...config }));
    const configMaps = resource<V1ConfigMap>("v1", "ConfigMap", "configmaps");
    await expect(createKube({ kubeconfig }).get(configMaps, { namespace: "n", name: "a" })).rejects.toMatchObject({
      code: "KUBERNETES_UNREACHABLE",
      message: expect.stringMatching(new RegExp(`^the Kubernetes API at ${server} does not answer: .*disconnected`)),
    });
    // Names of no object: a URL with one of them would ask for another.
    for (const name of [".", ".."]) expect(await createKube({ kubeconfig }).get(configMaps, { namespace: "n", name })).toBeUndefined();
  } finally {
    balancer.close();
    await rm(dir, { recursive: true });
  }
});
