/** Every image runs under restricted Pod Security: no root, no capabilities, a read-only file system. */
import { afterAll, beforeAll, expect, it } from "vitest";
import { type ClusterNamespace, collectSpans, createNamespace, eventually, isOwnNode, type Json, root } from "../cluster-under-test.ts";

let space: ClusterNamespace;
beforeAll(async () => {
  space = await createNamespace("images-test");
});
afterAll(() => space[Symbol.asyncDispose]());

const python = `${root}/.venv/bin/python`;

/** @returns the container's last state and its output. */
async function outcome(name: string, image: string, container: object): Promise<{ exitCode: number; log: string }> {
  const { items } = (await space.get("pvc")) as { items: Json[] };
  const paths = new Map<string, string>();
  for (const { metadata, spec } of items) {
    const volume: Json = JSON.parse(await space.kubectl("get", "persistentvolume", spec.volumeName as string, "-o", "json"));
    paths.set(metadata.name as string, volume.spec.hostPath.path as string);
  }
  await space.apply({
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name },
    spec: {
      restartPolicy: "Never",
      automountServiceAccountToken: false,
      securityContext: { runAsNonRoot: true, seccompProfile: { type: "RuntimeDefault" } },
      containers: [
        {
          name: "main",
          image: `docker.io/loraline/${image}:dev`,
          imagePullPolicy: "Never",
          securityContext: { allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: { drop: ["ALL"] } },
          volumeMounts: [
            { name: "tmp", mountPath: "/tmp" },
            ...[...paths].map(([claim, mountPath]) => ({ name: claim, mountPath, readOnly: true })),
          ],
          ...container,
        },
      ],
      volumes: [
        { name: "tmp", emptyDir: {} },
        ...[...paths.keys()].map((claim) => ({ name: claim, persistentVolumeClaim: { claimName: claim, readOnly: true } })),
      ],
    },
  });
  const terminated: Json = await eventually<Json>(
    `pod ${name} ended`,
    async () => (await space.get("pod", name)).status.containerStatuses?.[0]?.state?.terminated,
    { timeoutMs: 120_000 },
  );
  return { exitCode: terminated.exitCode as number, log: await space.kubectl("logs", name) };
}

it.runIf(isOwnNode)("services: a program loads all it imports, and says in one line what is wrong", async () => {
  const { exitCode, log } = await outcome("services", "services", {
    args: ["services/gateway/src/main.ts"],
    env: [{ name: "PORT", value: "none" }],
  });
  expect(exitCode).toBe(1);
  expect(log.trim().split("\n")).toHaveLength(1);
  expect(JSON.parse(log)).toMatchObject({ service: "gateway", msg: expect.stringContaining("PORT") as string });
});

it.runIf(isOwnNode)("agent: lists the variables that it needs", async () => {
  const { exitCode, log } = await outcome("agent", "agent", { args: ["services/serve/src/agent-main.ts"] });
  expect(exitCode).toBe(1);
  expect(log).toContain("AGENT_PUBLIC_URL");
});

it.runIf(isOwnNode)("trainer: the courier is its program, and the mounted Python trains", async () => {
  const { exitCode, log } = await outcome("trainer", "trainer", {
    args: ["/tmp"],
    env: [{ name: "LORALINE_BASES_DIR", value: `${root}/.loraline/bases` }],
  });
  expect(exitCode).toBe(1);
  expect(log).toContain("there is none that can be read in /tmp");
  const imports = await outcome("trainer-python", "trainer", {
    command: [python, "-c", "import torch, transformers, peft; print(peft.__version__)"],
  });
  expect(imports).toMatchObject({ exitCode: 0, log: expect.stringMatching(/^\d+\.\d+/m) as string });
});

it.runIf(isOwnNode)("engine: user 65532 reads every file of Python and of the bases, and writes nowhere else than /tmp", async () => {
  const script = `set -e; id -u; ${python} -c 'import vllm; print("vllm", vllm.__version__)'
    for dir in ${root}/.venv ${root}/.loraline/bases /app; do find $dir ! -type l ! -readable; done
    touch /tmp/here; touch /app/there 2>&1 || true`;
  const { exitCode, log } = await outcome("engine", "engine-cpu", { command: ["sh", "-c", script] });
  expect(log.trim().split("\n").slice(-3)).toEqual([
    "65532",
    expect.stringMatching(/^vllm /),
    expect.stringContaining("Read-only file system"),
  ]);
  expect(exitCode).toBe(0);
});

it.runIf(isOwnNode)("nats starts; pods reach the collector of spans on this machine", async () => {
  expect(await outcome("nats", "nats", { args: ["--version"] })).toMatchObject({
    exitCode: 0,
    log: expect.stringContaining("v2.") as string,
  });
  await using collector = await collectSpans();
  const span = { traceId: "a".repeat(32), spanId: "b".repeat(16), name: "hello", startTimeUnixNano: "1000000", endTimeUnixNano: "2000000" };
  const resource = { attributes: [{ key: "service.name", value: { stringValue: "a pod" } }] };
  const body = JSON.stringify({ resourceSpans: [{ resource, scopeSpans: [{ spans: [span] }] }] });
  // As exporters do: what a pod says first may be lost, when the network does not know it yet.
  const script = `for (let left = 10; ; left--) {
    const request = { method: "POST", body: process.env.BODY, signal: AbortSignal.timeout(2000) };
    const error = await fetch("${collector.url}/v1/traces", request).then(({ ok, status }) => (ok ? undefined : status), String);
    if (error === undefined) break;
    console.log(error);
    if (left === 0) process.exit(1);
    await new Promise((resolve) => setTimeout(resolve, 500));
  }`;
  const { log, exitCode } = await outcome("spans", "services", {
    command: ["node", "--input-type=module", "-e", script],
    env: [{ name: "BODY", value: body }],
  });
  expect(exitCode, log).toBe(0);
  expect(collector.ofTrace("a".repeat(32))).toContainEqual(
    expect.objectContaining({ service: "a pod", name: "hello", startMs: 1, endMs: 2 }),
  );
});
