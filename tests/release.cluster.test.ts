/** A release is pushed to a registry on this machine, and used from there alone. (Images need base images, which cannot be had here.) */
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { ensureStreams } from "@loraline/bus";
import { version } from "@loraline/contracts";
import { spawnNatsServer } from "@loraline/testkit";
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

it(
  "the typed client is an npm package with which a TypeScript program asks a real gateway, and a misspelt field is found before",
  { timeout: 300_000 },
  async () => {
    const npm = ["install", "--no-audit", "--no-fund", "--prefer-offline", "--prefix", dir];
    await run("npm", [...npm, join(root, `.cache/release/loraline-client-${version}.tgz`)], { env: { ...process.env, PATH: path } });
    const program = `import { ApiError, createApiClient } from "@loraline/client";
const [url = "", apiKey = ""] = process.argv.slice(2);
const loraline = createApiClient({ url, apiKey });
const body = new FormData();
body.set("purpose", "fine-tune");
body.set("file", new File(['{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}\\n'], "a.jsonl"));
const { id, filename } = await loraline.createFile({ body });
const ids: string[] = (await loraline.listFiles()).data.map((file) => file.id);
console.log(filename, ids.includes(id));
await loraline.getRun({ run_id: "01KB0000000000000000000DS1" }).catch((error: unknown) => {
  if (!(error instanceof ApiError)) throw error;
  console.log(error.code, error.status);
});
`;
    writeFileSync(join(dir, "program.ts"), program);
    writeFileSync(join(dir, "wrong.ts"), program.replace("({ body })", "({ bdy: body })"));
    // Strict, and with the package's declarations themselves checked.
    const settings = { strict: true, noEmit: true, target: "es2023", lib: ["es2024", "dom"], module: "nodenext", types: ["node"] };
    const typeRoots = [join(root, "node_modules/@types")];
    const check = (file: string) => {
      writeFileSync(join(dir, "tsconfig.json"), JSON.stringify({ compilerOptions: { ...settings, typeRoots }, files: [file] }));
      return run(join(root, "node_modules/.bin/tsc"), ["-p", dir], { cwd: dir });
    };
    writeFileSync(
      join(dir, "package.json"),
      JSON.stringify({ ...(JSON.parse(readFileSync(join(dir, "package.json"), "utf8")) as object), type: "module" }),
    );
    await check("program.ts");
    await expect(check("wrong.ts")).rejects.toMatchObject({ stdout: expect.stringContaining("'bdy' does not exist") });

    await using nats = await spawnNatsServer();
    const nc = await nats.connect();
    await ensureStreams(nc);
    const key = "ll-release-test-0123456789abcdefghijklmnopqrstuvwxyz";
    const env = {
      NATS_URL: nats.url,
      HOST: "127.0.0.1",
      PORT: "0",
      BOOTSTRAP_TENANT: "acme",
      BOOTSTRAP_API_KEY: key,
      SPOOL_DIR: join(dir, "spool"),
    };
    const gateway = spawn(process.execPath, ["--conditions=@loraline/source", join(root, "services/gateway/src/main.ts")], {
      env: { PATH: path, ...env },
    });
    const exited = once(gateway, "exit");
    try {
      let log = "";
      for (const stream of [gateway.stdout, gateway.stderr]) stream.on("data", (text: Buffer) => (log += text.toString()));
      const url = async () => /"url":"(http:[^"]+)"[^\n]*gateway is listening/.exec(log)?.[1];
      await expect.poll(url, { timeout: 60_000 }).toBeDefined();
      const { stdout } = await run(process.execPath, ["program.ts", (await url()) ?? "", key], { cwd: dir });
      expect(stdout.trim().split("\n")).toEqual(["a.jsonl true", "not_found 404"]);
    } finally {
      gateway.kill("SIGTERM");
      await exited;
      await nc.close();
    }
  },
);
