/** What `make cluster-up` prints is run as it is printed, by somebody who has nothing else: from a bare cluster to a sample that answers. */
import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, expect, inject, it } from "vitest";
import { binDir, helm, isOwnNode, kubectl, root } from "../cluster-under-test.ts";

const bash = async (...args: string[]): Promise<string> =>
  (await promisify(execFile)("bash", args, { cwd: root, maxBuffer: 2 ** 26 })).stdout;

afterAll(async () => {
  if (!isOwnNode) return;
  await helm("uninstall", "loraline", "--namespace", "loraline", "--wait").catch(() => undefined);
  const env = { ...process.env, KUBECONFIG: inject("kubeconfig") };
  for (const namespace of ["loraline-runs", "loraline"])
    await promisify(execFile)(join(root, "infra/cluster/volumes.sh"), ["--delete", namespace], { env }).catch(() => undefined);
}, 900_000);

it.runIf(isOwnNode)("the printed commands lead to a proven adapter that answers", { timeout: 900_000 }, async () => {
  const printed = await bash(join(root, "infra/cluster/next-steps.sh"), inject("kubeconfig"));
  const said = await bash("-euo", "pipefail", "-c", printed);
  expect(said).toMatch(/Phase: +Succeeded/);
  // The same through kubectl, as its plugin.
  const plugin = join(root, "packages/cli/src/kubectl-main.ts");
  const args = ["--conditions=@loraline/source", plugin, "--kubeconfig", inject("kubeconfig"), "-n", "loraline", "adapters"];
  const env = { ...process.env, PATH: `${process.env.PATH}:${binDir}` };
  expect((await promisify(execFile)(process.execPath, args, { env })).stdout).toContain("helm-test");
  // The pod's own words: the run that it followed, and the answer.
  const log = await kubectl("--namespace", "loraline", "logs", "loraline-test", "--all-containers");
  expect(log).toMatch(/served/i);
  expect((await kubectl("--namespace", "loraline", "logs", "loraline-test", "--container", "ask")).trim()).not.toBe("");
});
