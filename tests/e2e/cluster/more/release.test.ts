/**
 * A release in a registry on this machine is all that there is: docs/operations.md's "From nothing to an answer", as it stands there, by somebody
 * without a checkout. The node has no image of ours, the volume no base. Then the Engine sleeps, wakes, is scaled and goes.
 */
import { execFile } from "node:child_process";
import { chmod, copyFile, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { version } from "@loraline/contracts";
import { playHub } from "@loraline/testkit/servers";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { parse } from "yaml";
import { type Registry, startRegistry } from "../../../registry-under-test.ts";
import {
  base,
  component,
  environment,
  eventually,
  helm,
  hostAddress,
  isOwnNode,
  type Json,
  kubectl,
  merged,
  root,
  type Values,
} from "../cluster-under-test.ts";

const run = promisify(execFile);
const namespaces = ["loraline", "loraline-runs"];
const of = (...args: string[]): Promise<string> => kubectl("-n", "loraline", ...args);
const get = async (...args: string[]): Promise<Json> => JSON.parse(await of("get", ...args, "-o", "json"));
/** The node's own containerd. */
const ctr = async (...args: string[]): Promise<string> =>
  (await run("ctr", ["-a", "/run/test-containerd/containerd.sock", "-n", "k8s.io", ...args], { maxBuffer: 2 ** 26 })).stdout;
/** What the node's containerd calls its images, but for the pause container's: by name, by digest and by id. */
async function onNode(): Promise<string[]> {
  const images = (await ctr("images", "ls"))
    .split("\n")
    .slice(1)
    .map((line) => line.split(/\s+/));
  const pause = images.find(([name = ""]) => name.includes("/pause:"))?.[2];
  return images.filter(([name, , digest]) => name && digest !== pause).map(([name = ""]) => name);
}

/** What stands in for an image that no machine here can pull: of NATS and vLLM the node's own, with Python mounted. */
const localOf: Record<string, string> = { "library/nats": "nats", "vllm/vllm-openai": "engine-cpu" };

describe.runIf(isOwnNode)("a release", () => {
  const owned = new AsyncDisposableStack();
  let registry: Registry;
  let hub: Awaited<ReturnType<typeof playHub>>;
  let folder: string;
  let bases: string;
  /** Files and commands of the page. */
  let commands: string[];
  let listed: string[];

  beforeAll(async () => {
    registry = owned.use(await startRegistry());
    folder = await mkdtemp(join(tmpdir(), "loraline-from-nothing-"));
    owned.defer(() => rm(folder, { recursive: true }));
    const said = await run("bash", [
      join(root, "infra/release/release.sh"),
      `${registry.host}/loraline`,
      "--without-images",
      "--plain-http",
    ]);
    expect(said.stdout).toContain(`oci://${registry.host}/loraline/charts/loraline --version ${version}`);
    await copyFile(join(root, `.cache/release/loraline-cli-${version}.tgz`), join(folder, `loraline-cli-${version}.tgz`));

    // As for a site without the internet: each image of the list goes to the mirror, under its own path.
    listed = (await readFile(join(root, ".cache/release/images.txt"), "utf8")).trim().split("\n");
    for (const image of listed) {
      const path = image.slice(image.indexOf("/") + 1);
      const [name = ""] = path.split(":");
      const local = localOf[name] ?? name.replace("loraline/", "");
      await ctr("images", "push", "--plain-http", `${registry.host}/${path}`, `docker.io/loraline/${local}:dev`);
    }
    owned.defer(async () => {
      // First ours again, then what came from the registry: they share their layers, which so need not be read anew.
      await run(join(root, "infra/cluster/images.sh"));
      for (const name of await onNode()) if (name.startsWith(registry.host)) await ctr("images", "rm", name);
    });
    await ctr("images", "rm", "--sync", ...(await onNode()));
    expect(await onNode()).toEqual([]);

    const local = join(root, ".loraline/bases", base);
    const files: Record<string, Buffer> = {};
    for (const name of await readdir(local)) if (name !== "base.json") files[name] = await readFile(join(local, name));
    hub = owned.use(
      await playHub({
        repo: "HuggingFaceTB/SmolLM2-135M-Instruct",
        commit: "0123456789abcdef0123456789abcdef01234567",
        files,
        host: hostAddress,
      }),
    );

    bases = await mkdtemp(join(root, ".cache/cluster/bases-"));
    await chmod(bases, 0o777); // the kubelet gives no hostPath to a pod's group
    owned.defer(() => rm(bases, { recursive: true }));
    const env = { ...environment(), LORALINE_BASES_DIR: bases };
    owned.defer(async () => {
      await helm("uninstall", "loraline", "--namespace", "loraline", "--wait").catch(() => undefined);
      for (const namespace of namespaces.toReversed())
        await run(join(root, "infra/cluster/volumes.sh"), ["--delete", namespace], { env }).catch(() => undefined);
    });
    for (const namespace of namespaces) await run(join(root, "infra/cluster/volumes.sh"), [namespace], { env });

    const page = await readFile(join(root, "docs/operations.md"), "utf8");
    const section = /^### From nothing to an answer\n([^]*?)^###? /m.exec(page)?.[1] ?? "";
    const blocks = [...section.matchAll(/```(\w+)\n([^]*?)```/g)].map(([, language = "", code = ""]) => ({
      language,
      code: code.replaceAll("registry.example.com", registry.host).replaceAll("0.1.0", version),
    }));
    for (const { code, language } of blocks) {
      const [, file] = /^# ([\w.-]+)/.exec(code) ?? [];
      if (language === "yaml" && file !== undefined) await writeFile(join(folder, file), code);
    }
    commands = blocks.filter(({ language }) => language === "sh").flatMap(({ code }) => code.trim().split("\n"));
    // What this node is, and nothing of the line: no GPU, no class of storage, no hub; Python from a volume.
    const values = merged(await nodeValues(), parse(await readFile(join(folder, "values.yaml"), "utf8")) as Values);
    await writeFile(join(folder, "values.yaml"), JSON.stringify(values));
  }, 600_000);
  afterAll(() => owned.disposeAsync(), 900_000);

  async function nodeValues(): Promise<Values> {
    const { image: _, ...values } = JSON.parse((await run("python3", [join(root, "infra/cluster/values.py")])).stdout);
    const { image: __, ...engineDefaults } = values.engineDefaults as Values;
    const { volumes, volumeMounts } = values.train.pods;
    const container = { name: "base", env: [{ name: "LORALINE_PYTHON", value: `${root}/.venv/bin/python` }], volumeMounts };
    return {
      ...values,
      engineDefaults,
      image: { mirror: registry.host },
      nats: { ...values.nats, persistence: { enabled: false } },
      imports: { hubEndpoint: hub.url },
      operator: { ...values.operator, bases: { podTemplate: { spec: { containers: [container], volumes } } } },
    };
  }

  /** As a shell does, in the folder. The registry speaks plain HTTP, which helm wants to be told. */
  const type = async (command: string): Promise<string> => {
    const text = command.replace(/^helm .*$/, "$& --plain-http");
    const { stdout } = await run("bash", ["-euc", text], {
      cwd: folder,
      env: { ...environment(), npm_config_prefer_offline: "true" },
      maxBuffer: 2 ** 26,
    });
    return stdout;
  };

  it("leads from nothing to a sample that answers in four commands", { timeout: 1_200_000 }, async () => {
    expect(commands).toHaveLength(4);
    for (const command of commands.slice(0, 3)) await type(command);
    const answer = await type(commands[3] ?? "");
    expect(answer.trim()).not.toBe("");
    expect(hub.asked).toContain("model.safetensors");
    const { status } = await get("finetune", "persona");
    expect(status).toMatchObject({ phase: "Served", converged: "1/1", promoted: true });
    expect((await get("base", base)).status.digest).toBe((await get("engine", "smollm2")).status.digest);
  });

  it("has a list of images that names what nodes pull, no more and no less", async () => {
    const mirrored = listed.map((image) => `${registry.host}/${image.slice(image.indexOf("/") + 1)}`);
    expect((await onNode()).filter((name) => !/@|^sha256:/.test(name)).toSorted()).toEqual(mirrored.toSorted());
    const { items } = JSON.parse(await kubectl("get", "pods", "-A", "-o", "json"));
    const ran = (items as Json[]).flatMap(({ status }) => [...(status.initContainerStatuses ?? []), ...(status.containerStatuses ?? [])]);
    for (const { imageID } of ran) expect(imageID).toMatch(new RegExp(`^${registry.host}/`));
  });

  it(
    "an Engine that nobody asks goes to sleep, and a request that comes then waits for it and is answered",
    { timeout: 900_000 },
    async () => {
      const pods = async (): Promise<Json[]> => (await get("pods", "-l", component("engine"))).items;
      const [first] = await pods();
      await of(
        "patch",
        "engine/smollm2",
        "--type=merge",
        "--patch",
        JSON.stringify({ spec: { wake: { waitSeconds: 240, idleAfterSeconds: 60 } } }),
      );
      await eventually("it sleeps", async () => (await pods()).length === 0, { timeoutMs: 600_000 });
      expect((await type(commands[3] ?? "")).trim()).not.toBe("");
      const [woken, ...more] = await pods();
      expect(more).toEqual([]);
      expect(woken?.metadata.uid).not.toBe(first?.metadata.uid);
      // It proved the adapter anew before it answered, as every replica does.
      expect((await get("finetune", "persona")).status).toMatchObject({ phase: "Served", converged: "1/1" });
      await of("patch", "engine/smollm2", "--type=json", "--patch", JSON.stringify([{ op: "remove", path: "/spec/wake" }]));
    },
  );

  it("an Engine is scaled to none by kubectl, and deleted with all that the operator made for it", { timeout: 900_000 }, async () => {
    const engine = async (): Promise<Json> => (await get("engine", "smollm2")).status;
    const ready = async () => (await engine()).conditions.find((one: Json) => one.type === "Ready");
    await of("scale", "engine/smollm2", "--replicas=0");
    await eventually(
      "no replica",
      async () => {
        const { replicas } = await engine();
        const { reason } = await ready();
        if (reason !== "ScaledToZero" || replicas !== 0) throw new Error(`${replicas} replicas, ${reason}`);
        return true;
      },
      { timeoutMs: 150_000 },
    );
    await eventually("its pods are gone", async () => (await get("pods", "-l", component("engine"))).items.length === 0, {
      timeoutMs: 150_000,
    });

    await of("delete", "engine/smollm2", `base/${base}`, "--timeout=60s");
    const made = "deployments,services,jobs,pods,poddisruptionbudgets";
    await eventually("nothing of it is left", async () => {
      const { items } = await get(made);
      const left = (items as Json[]).filter(
        ({ metadata }) => metadata.labels?.["loraline.dev/engine"] ?? metadata.labels?.["loraline.dev/base"],
      );
      if (left.length > 0) throw new Error(left.map(({ kind, metadata }) => `${kind} ${metadata.name}`).join(", "));
      return true;
    });
    const told = async () =>
      JSON.parse((await get("configmap", "loraline-engines-of-resources")).data["engines.json"] as string) as unknown;
    await eventually("serve is told of none", async () => JSON.stringify(await told()) === "[]");
    // The folder is not the operator's to take away; the adapter waits for another engine.
    expect(await readdir(join(bases, base))).toContain("base.json");
    expect((await get("adapter", "persona")).status.promoted).toBe(1);
  });
});
