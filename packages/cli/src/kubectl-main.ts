/**
 * `kubectl loraline …`: the CLI for the Loraline of a namespace, over kubectl's own connection. It forwards a port to the gateway's Service, takes the
 * first admin key from its Secret (or LORALINE_API_KEY), and runs the CLI with these. `-n`, `--namespace`, `--context` and `--kubeconfig` before the
 * command are kubectl's; the namespace is otherwise that of the context.
 */
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { promisify } from "node:util";

const ofKubectl = new Set(["-n", "--namespace", "--context", "--kubeconfig"]);
const given = process.argv.slice(2);
const scope: string[] = [];
while (given.length > 0) {
  const [flag = "", value] = given;
  if (ofKubectl.has(flag) && value !== undefined) scope.push(...given.splice(0, 2));
  else if (ofKubectl.has(flag.replace(/=.*/, "")) && flag.includes("=")) scope.push(...given.splice(0, 1));
  else break;
}
const fail = (why: string): never => {
  console.error(`kubectl loraline: ${why}`);
  process.exit(3);
};
const kubectl = async (...args: string[]): Promise<string> => {
  try {
    return (await promisify(execFile)("kubectl", [...scope, ...args], { maxBuffer: 2 ** 26 })).stdout;
  } catch (error) {
    return fail(String((error as { stderr?: string }).stderr ?? error).trim());
  }
};

const needsNone = given.length === 0 || given.includes("--help") || given.includes("-h") || given.includes("--version");
if (!needsNone) {
  interface Service {
    metadata: { name: string; labels: Record<string, string> };
    spec: { ports: { name: string; port: number }[] };
  }
  const selector = "app.kubernetes.io/name=loraline,app.kubernetes.io/component=gateway";
  const { items } = JSON.parse(await kubectl("get", "services", "-l", selector, "-o", "json")) as { items: Service[] };
  const gateway = items.find(({ spec }) => spec.ports.some(({ name }) => name === "http"));
  const port = gateway?.spec.ports.find(({ name }) => name === "http")?.port;
  if (gateway === undefined || port === undefined)
    fail("there is no Loraline in this namespace. Name that of the release: kubectl loraline -n NAMESPACE …");
  else {
    const name = gateway.metadata.name;
    process.env["LORALINE_API_KEY"] ??= Buffer.from(
      await kubectl("get", "secret", `${name.replace(/-gateway$/, "")}-admin-key`, "-o", "jsonpath={.data.key}"),
      "base64",
    ).toString();
    const forward = spawn("kubectl", [...scope, "port-forward", `service/${name}`, `:${port}`], { stdio: ["ignore", "pipe", "inherit"] });
    process.on("exit", () => forward.kill());
    const said = once(createInterface({ input: forward.stdout }), "line") as Promise<[string]>;
    const ended = once(forward, "exit").then(() => undefined);
    const line = await Promise.race([said, ended]);
    const address = /127\.0\.0\.1:\d+/.exec(line?.[0] ?? "")?.[0];
    if (address === undefined) fail("no port could be forwarded to the gateway.");
    process.env["LORALINE_URL"] = `http://${address}`;
  }
}
process.argv.splice(2, process.argv.length - 2, ...given);
await import("./main.ts");
process.exit();
