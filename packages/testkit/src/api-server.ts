/** A real Kubernetes API server with its etcd and no nodes, which is enough for most tests. */
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { freePort } from "./server-process.ts";

/** Folder of the programs that infra/cluster/build.sh built. */
const binDir = process.env.LORALINE_CLUSTER_BIN ?? join(homedir(), ".cache/loraline/cluster-bin");

export interface ApiServer extends AsyncDisposable {
  kubeconfig: string;
  /** PEM files of its certificate, for servers that it is to reach over TLS. */
  certificate: { cert: string; key: string };
  /** Starts it; resolves when it is ready. */
  ready(): Promise<void>;
  /** Kills it with SIGKILL. */
  kill(): Promise<void>;
  start(): void;
}

export async function startApiServer(): Promise<ApiServer> {
  const dir = await mkdtemp(join(tmpdir(), "loraline-kube-"));
  const run = promisify(execFile);
  const openssl = (...args: string[]) => run("openssl", args, { cwd: dir });
  await openssl(
    "req",
    "-x509",
    "-newkey",
    "rsa:2048",
    "-nodes",
    "-keyout",
    "ca.key",
    "-out",
    "ca.crt",
    "-days",
    "2",
    "-subj",
    "/CN=test-ca",
  );
  for (const [name, subject, san] of [
    ["server", "/CN=kube-apiserver", "IP:127.0.0.1"],
    ["admin", "/O=system:masters/CN=admin", "DNS:none"],
  ] as const) {
    await openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", `${name}.key`, "-out", `${name}.csr`, "-subj", subject);
    await writeFile(join(dir, `${name}.ext`), `subjectAltName=${san}\nextendedKeyUsage=serverAuth,clientAuth`);
    await openssl(
      "x509",
      "-req",
      "-in",
      `${name}.csr`,
      "-CA",
      "ca.crt",
      "-CAkey",
      "ca.key",
      "-CAcreateserial",
      "-days",
      "2",
      "-out",
      `${name}.crt`,
      "-extfile",
      `${name}.ext`,
    );
  }
  await openssl("genrsa", "-out", "sa.key", "2048");
  await openssl("rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub");

  const [client, peer, secure] = [await freePort(), await freePort(), await freePort()];
  const kubeconfig = join(dir, "admin.conf");
  await writeFile(
    kubeconfig,
    JSON.stringify({
      apiVersion: "v1",
      kind: "Config",
      clusters: [{ name: "t", cluster: { server: `https://127.0.0.1:${secure}`, "certificate-authority": join(dir, "ca.crt") } }],
      users: [{ name: "u", user: { "client-certificate": join(dir, "admin.crt"), "client-key": join(dir, "admin.key") } }],
      contexts: [{ name: "c", context: { cluster: "t", user: "u" } }],
      "current-context": "c",
    }),
  );
  const etcd = spawn(
    "etcd",
    [
      "--data-dir",
      join(dir, "etcd"),
      "--unsafe-no-fsync",
      "--log-level",
      "error",
      "--listen-client-urls",
      `http://127.0.0.1:${client}`,
      "--advertise-client-urls",
      `http://127.0.0.1:${client}`,
      "--listen-peer-urls",
      `http://127.0.0.1:${peer}`,
      "--initial-advertise-peer-urls",
      `http://127.0.0.1:${peer}`,
      "--initial-cluster",
      `default=http://127.0.0.1:${peer}`,
    ],
    { stdio: "ignore" },
  );
  let server: ChildProcess | undefined;
  let log = "";

  const api: ApiServer = {
    kubeconfig,
    certificate: { cert: join(dir, "server.crt"), key: join(dir, "server.key") },
    start() {
      server = spawn(
        join(binDir, "kube"),
        [
          "kube-apiserver",
          "--etcd-servers",
          `http://127.0.0.1:${client}`,
          "--bind-address",
          "127.0.0.1",
          "--advertise-address",
          "127.0.0.1",

          "--secure-port",
          String(secure),
          "--cert-dir",
          dir,
          "--service-cluster-ip-range",
          "10.0.0.0/24",
          "--authorization-mode",
          "RBAC",

          "--tls-cert-file",
          join(dir, "server.crt"),
          "--tls-private-key-file",
          join(dir, "server.key"),
          "--client-ca-file",
          join(dir, "ca.crt"),
          "--service-account-key-file",
          join(dir, "sa.pub"),
          "--service-account-signing-key-file",
          join(dir, "sa.key"),
          "--service-account-issuer",
          "https://kubernetes.default.svc",
          "--disable-admission-plugins",
          "ServiceAccount",
          // Short, so that an old resource version expires within a test.
          "--etcd-compaction-interval",
          "1s",
          "--watch-cache=true",
        ],
        { stdio: ["ignore", "ignore", "pipe"] },
      );
      server.stderr?.on("data", (text: Buffer) => (log = (log + text.toString()).slice(-4000)));
    },
    async ready() {
      for (const end = Date.now() + 60_000; ;) {
        try {
          await run(join(binDir, "kubectl"), ["--kubeconfig", kubeconfig, "get", "--raw", "/readyz"]);
          return;
        } catch (error) {
          if (Date.now() > end) throw new Error(`the API server does not answer: ${String(error)}\n${log}`, { cause: error });
          await new Promise((resolve) => setTimeout(resolve, 100));
        }
      }
    },
    kill: () => ended(server),
    async [Symbol.asyncDispose]() {
      await ended(server);
      await ended(etcd);
      await rm(dir, { recursive: true, force: true });
    },
  };
  api.start();
  await api.ready();
  return api;
}

/** Starts controllers of the real controller manager, by its names, such as `job-controller`. There is no node. Autoscalers look each second. */
export function startControllers({ kubeconfig }: Pick<ApiServer, "kubeconfig">, ...names: string[]): AsyncDisposable {
  const options = {
    kubeconfig,
    controllers: names.join(","),
    "leader-elect": false,
    "secure-port": 0,
    "horizontal-pod-autoscaler-sync-period": "1s",
    "horizontal-pod-autoscaler-downscale-stabilization": "2s",
    "horizontal-pod-autoscaler-initial-readiness-delay": "0s",
    "horizontal-pod-autoscaler-cpu-initialization-period": "1s",
  };
  const flags = Object.entries(options).map(([name, value]) => `--${name}=${value}`);
  const controllers = spawn(join(binDir, "kube"), ["kube-controller-manager", ...flags], { stdio: "ignore" });
  return { [Symbol.asyncDispose]: () => ended(controllers) };
}

const ended = (child: ChildProcess | undefined): Promise<void> =>
  new Promise((resolve) => {
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return resolve();
    child.once("exit", () => resolve());
    child.kill("SIGKILL");
  });
