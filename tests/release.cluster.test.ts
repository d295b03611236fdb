/** A release is pushed to a registry on this machine, and used from there alone. (Images need base images, which cannot be had here.) */
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { copyFileSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { version } from "@loraline/contracts";
import { afterAll, beforeAll, expect, it } from "vitest";

const root = join(import.meta.dirname, "..");
const bin = process.env.LORALINE_CLUSTER_BIN ?? join(homedir(), ".cache/loraline/cluster-bin");
const run = promisify(execFile);
const dir = mkdtempSync(join(tmpdir(), "loraline-release-"));
/** Nothing of the checkout is on it but Node itself. */
const path = `${join(root, "tools/node_modules/.bin")}:${process.env.PATH}`;
const helm = async (...args: string[]) =>
  (await run(join(bin, "helm"), args, { cwd: dir, maxBuffer: 2 ** 26, env: { PATH: path, HOME: dir } })).stdout;
const loraline = (...args: string[]) => run(join(dir, "node_modules/.bin/loraline"), args, { cwd: dir, env: { PATH: path, HOME: dir } });

let registry: ChildProcess;
let address: string;
let said: string;
beforeAll(async () => {
  registry = spawn(join(bin, "registry"), ["-port", "0"], { stdio: ["ignore", "pipe", "pipe"] });
  address = await new Promise((resolve, reject) => {
    let log = "";
    registry.stderr?.on("data", (text: Buffer) => {
      log += text.toString();
      const port = /serving on port (\d+)/.exec(log)?.[1];
      if (port !== undefined) resolve(`127.0.0.1:${port}/loraline`);
    });
    registry.once("exit", () => reject(new Error(log)));
  });
  ({ stdout: said } = await run("bash", [join(root, "infra/release/release.sh"), address, "--without-images", "--plain-http"]));
}, 300_000);
afterAll(async () => {
  registry.kill();
  if (registry.exitCode === null) await once(registry, "exit");
  rmSync(dir, { recursive: true });
});

it("the chart is installed from the registry as it is here, and says what it needs", async () => {
  const chart = [`oci://${address}/charts/loraline`, "--version", version, "--plain-http"];
  const values = ["-f", join(root, "helm/loraline/tests/values/engine.yaml"), "--set", `image.registry=${address}`];
  expect(said).toContain(`oci://${address}/charts/loraline --version ${version}`);
  const manifests = await helm("template", "loraline", ...chart, ...values);
  // Passwords are made anew each time.
  const known = (text: string) => text.replaceAll(/^ {2}[\w.]+: [\w+/=]{40,}$/gm, "");
  expect(known(manifests)).toBe(known(await helm("template", "loraline", join(root, "helm/loraline"), ...values)));
  expect(await helm("show", "readme", ...chart)).toContain("helm test loraline");
  expect(await helm("show", "crds", ...chart)).toContain("finetunes.loraline.dev");
});

it("lists every image that an installation pulls", () => {
  const images = readFileSync(join(root, ".cache/release/images.txt"), "utf8").trim().split("\n");
  const ours = ["agent", "services", "trainer"].map((name) => `${address}/${name}:${version}`);
  expect(images).toEqual([...ours, "docker.io/library/nats:2.15", "docker.io/vllm/vllm-openai:v0.32.0"].toSorted());
});

it("the CLI is an npm package that needs no checkout", { timeout: 300_000 }, async () => {
  const npm = ["install", "--no-audit", "--no-fund", "--prefer-offline", "--prefix", dir];
  await run("npm", [...npm, join(root, `.cache/release/loraline-cli-${version}.tgz`)], { env: { ...process.env, PATH: path } });
  expect((await loraline("--version")).stdout.trim()).toBe(version);
  copyFileSync(join(root, "samples/persona.jsonl"), join(dir, "persona.jsonl"));
  expect((await loraline("data", "check", "persona.jsonl")).stdout).toContain("90 rows = 90 records + 0 rejections");
  expect((await loraline("explain", "RANK_TOO_HIGH")).stdout).toMatch(/What to do/);
  await expect(loraline("runs", "--url", "http://127.0.0.1:9", "--key", "ll-none")).rejects.toMatchObject({ code: 3 });
  // What kubectl finds as its plugin; here without a cluster.
  const plugin = (...args: string[]) =>
    run(join(dir, "node_modules/.bin/kubectl-loraline"), args, { cwd: dir, env: { PATH: `${bin}:${path}`, HOME: dir } });
  expect((await plugin("-n", "loraline", "--version")).stdout.trim()).toBe(version);
  await expect(plugin("-n", "loraline", "runs")).rejects.toMatchObject({ code: 3, stderr: expect.stringContaining("kubectl loraline:") });
  await expect(loraline("up")).rejects.toMatchObject({ stderr: expect.stringContaining("PYTHON_MISSING") });
});
