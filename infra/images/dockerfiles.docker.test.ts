/**
 * Every Dockerfile is built by the Docker engine, and what comes of it runs as the chart runs it: user 65532, a read-only file system, no
 * capabilities. Base images are made on this machine, unless NODE_IMAGE and PYTHON_IMAGE name some.
 */
import { execFile } from "node:child_process";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { version } from "@loraline/contracts";
import { spawnNatsServer } from "@loraline/testkit";
import { beforeAll, describe, expect, it } from "vitest";

const root = join(import.meta.dirname, "../..");
const run = promisify(execFile);
const registry = "loraline-test";
const engine = await run("docker", ["info"]).then(
  () => true,
  () => false,
);
if (!engine && process.env["LORALINE_REQUIRE_DOCKER"] === "1") throw new Error("LORALINE_REQUIRE_DOCKER=1, but no Docker engine answers.");

/** @returns how the container ended; its output is both of stdout and stderr. */
async function container(image: string, args: string[], options: string[] = []): Promise<{ code: number; output: string }> {
  const confined = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "host"];
  return run("docker", ["run", "--rm", ...confined, ...options, `${registry}/${image}:test`, ...args]).then(
    ({ stdout, stderr }) => ({ code: 0, output: stdout + stderr }),
    (error: { code: number; stdout: string; stderr: string }) => ({ code: error.code, output: error.stdout + error.stderr }),
  );
}

describe.runIf(engine)("images", () => {
  beforeAll(async () => {
    const { NODE_IMAGE, PYTHON_IMAGE } = process.env;
    const given = NODE_IMAGE !== undefined && PYTHON_IMAGE !== undefined;
    const made = given ? "" : (await run(join(root, "infra/images/base-images.sh"))).stdout;
    const bases = Object.fromEntries(
      made
        .trim()
        .split("\n")
        .map((line) => line.split("=")),
    );
    await run(join(root, "infra/images/build.sh"), [registry, "test"], { env: { ...process.env, ...bases } });
  }, 1_800_000);

  it.each(readdirSync(join(root, "services")))(
    "services: %s loads all it imports, and says in one line what is wrong with its settings",
    async (service) => {
      const { code, output } = await container("services", [`services/${service}/src/main.ts`], ["--env", "HEALTH_PORT=none"]);
      expect(output.trim().split("\n"), output).toHaveLength(1);
      expect(JSON.parse(output)).toMatchObject({ service, msg: expect.stringContaining("HEALTH_PORT") as string });
      expect(code).toBe(1);
    },
  );

  it("services: has the command line, makes the streams, and its gateway answers with the console's pages, and ends when it is told to", async () => {
    expect((await container("services", ["packages/cli/src/main.ts", "--version"])).output.trim()).toBe(version);
    await using nats = await spawnNatsServer();
    const env = ["--env", `NATS_URL=${nats.url}`];
    const streams = await container("services", ["packages/cli/src/main.ts", "ensure-streams"], env);
    expect(streams.code, streams.output).toBe(0);
    const name = `loraline-gateway-${process.pid}`;
    const gateway = container(
      "services",
      ["services/gateway/src/main.ts"],
      [...env, "--env", "HOST=127.0.0.1", "--env", "PORT=0", "--name", name],
    );
    let port: string | undefined;
    await expect
      .poll(async () => {
        const { stdout, stderr } = await run("docker", ["logs", name]);
        port = /http:\/\/127\.0\.0\.1:(\d+)/.exec(stdout + stderr)?.[1];
        return port;
      })
      .toBeDefined();
    const page = await fetch(`http://127.0.0.1:${port}/console/`);
    expect(page.status).toBe(200);
    expect(await page.text()).toContain("<!doctype html>");
    await run("docker", ["kill", "--signal", "TERM", name]);
    expect((await gateway).code).toBe(0);
  });

  it("agent: lists the variables that it needs, and has no other service", async () => {
    const { code, output } = await container("agent", []);
    expect(code).toBe(1);
    expect(output).toContain("AGENT_PUBLIC_URL");
    expect((await container("agent", ["services"], ["--entrypoint", "ls"])).output.trim()).toBe("serve");
  });

  it("trainer: the courier is its program, and its own Python starts the trainer", async () => {
    const courier = await container("trainer", ["/tmp"], ["--env", "LORALINE_BASES_DIR=/tmp"]);
    expect(courier.code).toBe(1);
    expect(courier.output).toContain("there is none that can be read in /tmp");
    const script =
      'id -u; "$LORALINE_PYTHON" -c "import torch, transformers, peft; print(torch.__version__)"; "$LORALINE_PYTHON" services/train/trainer/train.py';
    const python = await container("trainer", ["-c", script], ["--entrypoint", "sh"]);
    expect(python.output).toMatch(/^65532\n2\.[\s\S]*usage: python train\.py DIR/);
  });
});
