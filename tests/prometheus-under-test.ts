/** Debian's Prometheus for tests: as a server that scrapes, and as promtool. */
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { access, mkdir, readdir, rename, rm, writeFile } from "node:fs/promises";
import { delimiter, join } from "node:path";
import { promisify } from "node:util";

const root = join(import.meta.dirname, "..");
const run = promisify(execFile);

type Sample = { labels: Record<string, string>; value: number };

interface Prometheus extends AsyncDisposable {
  /** The samples of an instant query. @throws Error when the query is refused. */
  query(expr: string): Promise<Sample[]>;
  /** Names of alerts that fire now, each once. */
  firing(): Promise<string[]>;
  /** The exemplars of a series. */
  exemplars(expr: string): Promise<Record<string, string>[]>;
}

/** On PATH, or out of Debian's package, which is unpacked into the checkout. @throws Error that says what to install */
async function programOf(name: "prometheus" | "promtool"): Promise<string> {
  const unpacked = join(root, ".cache/prometheus");
  for (const dir of [...(process.env["PATH"] ?? "").split(delimiter), join(unpacked, "usr/bin")]) {
    if (await isThere(join(dir, name))) return join(dir, name);
  }
  const partial = `${unpacked}.${process.pid}`;
  try {
    await mkdir(partial, { recursive: true });
    await run("apt-get", ["download", "-qq", "prometheus"], { cwd: partial });
    const [file = ""] = (await readdir(partial)).filter((one) => one.endsWith(".deb"));
    await run("dpkg-deb", ["-x", file, "."], { cwd: partial });
    // Another test may have been faster.
    await rename(partial, unpacked).catch(() => rm(partial, { recursive: true }));
    return join(unpacked, "usr/bin", name);
  } catch (error) {
    await rm(partial, { recursive: true, force: true });
    throw new Error(`${name} is missing, and Debian's package cannot be fetched. Install it: apt-get install prometheus`, { cause: error });
  }
}
const isThere = (path: string): Promise<boolean> =>
  access(path).then(
    () => true,
    () => false,
  );

/** Runs promtool in `dir`. @returns what it said, also where it fails. */
export async function promtool(dir: string, ...args: string[]): Promise<{ code: number; said: string }> {
  return run(await programOf("promtool"), args, { cwd: dir, maxBuffer: 64 * 1024 ** 2 }).then(
    ({ stdout, stderr }) => ({ code: 0, said: stdout + stderr }),
    ({ code, stdout, stderr }: { code: number; stdout: string; stderr: string }) => ({ code, said: stdout + stderr }),
  );
}

/**
 * Scrapes each second.
 * @param options.targets - `host:port` of what has /metrics, as the job `loraline`.
 * @param options.rules - text of a file of rules.
 */
export async function startPrometheus({
  dir,
  port,
  targets,
  rules,
}: {
  dir: string;
  port: number;
  targets: readonly string[];
  rules?: string;
}): Promise<Prometheus> {
  await mkdir(dir, { recursive: true });
  if (rules !== undefined) await writeFile(join(dir, "rules.yml"), rules);
  const config = {
    global: { scrape_interval: "1s", scrape_timeout: "1s", evaluation_interval: "1s" },
    rule_files: rules === undefined ? [] : ["rules.yml"],
    scrape_configs: [{ job_name: "loraline", static_configs: [{ targets }] }],
  };
  await writeFile(join(dir, "prometheus.yml"), JSON.stringify(config));
  const flags = ["--config.file=prometheus.yml", "--storage.tsdb.path=data", "--enable-feature=exemplar-storage"];
  const child: ChildProcess = spawn(await programOf("prometheus"), [...flags, `--web.listen-address=127.0.0.1:${port}`], {
    cwd: dir,
    stdio: ["ignore", "ignore", "pipe"],
  });
  let said = "";
  child.stderr?.on("data", (chunk: Buffer) => (said += chunk.toString()));
  const exited = once(child, "exit");
  const ask = async (path: string): Promise<unknown> => {
    const answer = await fetch(`http://127.0.0.1:${port}/api/v1/${path}`);
    const { status, data, error } = (await answer.json()) as { status: string; data: unknown; error?: string };
    if (status !== "success") throw new Error(`Prometheus refuses ${decodeURIComponent(path)}: ${error}`);
    return data;
  };
  for (;;) {
    if (child.exitCode !== null) throw new Error(`Prometheus ended: ${said}`);
    const ready = await fetch(`http://127.0.0.1:${port}/-/ready`).then(
      (answer) => answer.ok,
      () => false,
    );
    if (ready) break;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  return {
    async query(expr) {
      const { result } = (await ask(`query?query=${encodeURIComponent(expr)}`)) as {
        result: { metric: Record<string, string>; value: [number, string] }[];
      };
      return result.map(({ metric, value }) => ({ labels: metric, value: Number(value[1]) }));
    },
    async firing() {
      const { alerts } = (await ask("alerts")) as { alerts: { labels: { alertname: string }; state: string }[] };
      return [...new Set(alerts.filter(({ state }) => state === "firing").map(({ labels }) => labels.alertname))].toSorted();
    },
    async exemplars(expr) {
      const now = Date.now() / 1000;
      const data = (await ask(`query_exemplars?query=${encodeURIComponent(expr)}&start=${now - 3600}&end=${now + 60}`)) as {
        exemplars: { labels: Record<string, string> }[];
      }[];
      return data.flatMap(({ exemplars }) => exemplars.map(({ labels }) => labels));
    },
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await exited;
    },
  };
}
