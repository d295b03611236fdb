/** The programs of examples/nats as a tenant runs them: over NATS accounts as an installation has them, with simulated trainer and engine. */
import { execFile, spawnSync } from "node:child_process";
import { readFile, stat } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { promisify } from "node:util";
import { connect } from "@nats-io/transport-node";
import { ulid } from "ulid";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { base, clientOf, jsonLines, program as loralineProgram, root, sampleRows, scratchDir } from "./line-under-test.ts";
import { announceLineIn, bootstrapKey, natsLoginOf, type SimulatedLine, startSimulatedLine, tenant } from "./services-under-test.ts";

const exec = promisify(execFile);
const examples = join(root, "examples/nats");
const cache = join(root, ".cache/examples-nats");
const owned = new AsyncDisposableStack();
let line: SimulatedLine;
let files: Server;

/** Runs in the checkout. @returns what was said, also where it fails. */
const run = (command: string, args: string[], env: Record<string, string> = {}, cwd = root) =>
  exec(command, args, { cwd, env: { ...process.env, ...env }, timeout: 300_000 }).then(
    ({ stdout, stderr }) => ({ code: 0, out: stdout, err: stderr }),
    ({ code, stdout, stderr }: { code: number; stdout: string; stderr: string }) => ({ code, out: stdout, err: stderr }),
  );
const made = async (command: string, args: string[], cwd = root): Promise<void> => {
  const { code, out, err } = await run(command, args, { CGO_ENABLED: "0" }, cwd);
  if (code !== 0) throw new Error(`${command} ${args.join(" ")}: ${out}${err}`);
};

/** Nothing else that runs without Kubernetes needs Go, so elsewhere than in CI it may be missing. */
const isGoWanted = process.env["CI"] !== undefined || spawnSync("go", ["version"]).status === 0;
if (!isGoWanted) console.warn("examples/nats/go is not tried: there is no `go` on this machine");

/** How each program is made, and started. */
const programs = [
  {
    language: "python",
    make: () => made("sh", ["examples/nats/python/env.sh"]),
    command: [join(cache, "python/bin/python"), join(examples, "python/train.py")],
  },
  {
    language: "go",
    make: () => made("go", ["build", "-o", join(cache, "go-train"), "."], join(examples, "go")),
    command: [join(cache, "go-train")],
  },
  { language: "typescript", make: async () => {}, command: [process.execPath, join(examples, "typescript/train.ts")] },
].filter(({ language }) => language !== "go" || isGoWanted);

beforeAll(async () => {
  const dir = owned.use(await scratchDir()).path;
  const rows = jsonLines(await sampleRows(24));
  files = createServer((request, response) => {
    if (request.url === "/rows.jsonl") response.end(rows);
    else if (request.url === "/none.jsonl") response.end('{"neither": "a question", "nor": "an answer"}\n');
    else response.writeHead(404).end();
  });
  await new Promise<void>((resolve) => files.listen(0, "127.0.0.1", resolve));
  owned.defer(() => void files.close());
  line = owned.use(
    await startSimulatedLine({
      dir,
      natsTenants: [tenant],
      env: { LORALINE_IMPORT_ALLOW: `127.0.0.1:${(files.address() as AddressInfo).port}` },
    }),
  );
  await Promise.all(programs.map(({ make }) => make()));
}, 300_000);
afterAll(() => owned.disposeAsync());

describe("loraline nats-context", () => {
  async function stateOf(): Promise<{ path: string } & AsyncDisposable> {
    const dir = await scratchDir();
    await announceLineIn(dir.path, line);
    return dir;
  }

  it("writes what the `nats` tool reads, for its owner only, and that opens the tenant's door", async () => {
    await using state = await stateOf();
    const env = { LORALINE_STATE: state.path, XDG_CONFIG_HOME: state.path };
    const [printed, written, exported] = await Promise.all([
      run(loralineProgram, ["nats-context"], env),
      run(loralineProgram, ["nats-context", "--write", "acme.local"], env),
      run("sh", ["-c", `eval "$(${loralineProgram} nats-context --env)" && echo "$NATS_URL $NATS_USER $NATS_INBOX_PREFIX"`], env),
    ]);
    const file = join(state.path, "nats/context/acme.local.json");
    expect(written, written.err).toMatchObject({ code: 0, out: expect.stringContaining("nats --context acme.local") });
    expect(await readFile(file, "utf8")).toBe(printed.out);
    expect((await stat(file)).mode & 0o777).toBe(0o600);
    expect(exported.out.trim()).toBe(`${line.nats.url} tenant.${tenant} _INBOX_tenant_${tenant}`);

    const {
      url,
      user,
      password,
      inbox_prefix: inboxPrefix,
    } = JSON.parse(printed.out) as Record<"url" | "user" | "password" | "inbox_prefix", string>;
    const nc = await connect({ servers: url, user, pass: password, inboxPrefix });
    try {
      const ack = await nc.request(`loraline.${tenant}.run.${ulid()}.cancel-requested.v1`, "{}");
      expect(ack.json()).toMatchObject({ stream: `DOOR_${tenant}` });
    } finally {
      await nc.close();
    }
  });

  it("says what to do where there is no server, no password, no such name", async () => {
    await using state = await stateOf();
    const [none, admin, name] = await Promise.all([
      run(loralineProgram, ["nats-context", "--state", join(state.path, "elsewhere")]),
      run(loralineProgram, ["nats-context", "--admin", "--state", state.path]),
      run(loralineProgram, ["nats-context", "--write", "../evil", "--state", state.path]),
    ]);
    expect(none).toMatchObject({ code: 3, err: expect.stringContaining("loraline up") });
    expect(admin).toMatchObject({ code: 5, err: expect.stringContaining("no password of local") });
    expect(name).toMatchObject({ code: 2, err: expect.stringContaining("letters, digits") });
  });
});

describe.each(programs)("$language", ({ language, command: [program = "", ...first] }) => {
  const start = (args: string[], login: Record<string, string> = {}) =>
    run(program, [...first, ...args], { ...natsLoginOf(tenant, line.nats.url), ...login });
  const at = (path: string): string => `http://127.0.0.1:${(files.address() as AddressInfo).port}${path}`;

  it("uploads, trains, follows and promotes by messages alone", { timeout: 300_000 }, async () => {
    const gateway = { url: line.gateways[0]?.url ?? "", apiKey: bootstrapKey };
    const client = clientOf(gateway);
    for (const version of [1, 2]) {
      const told = await start([at("/rows.jsonl"), language, base]);
      expect(told, told.out + told.err).toMatchObject({ code: 0, err: "" });
      expect(told.out).toContain("24 records, 0 rows that cannot be used");
      for (const word of ["ingested", "tokenized", "started", "progress", "trained", "served", "promoted"])
        expect(told.out).toContain(` ${word}`);
      expect(told.out).toContain(`${tenant}/${language} is version ${version} now`);
      expect((await client.getAdapter({ adapter: language })).adapter).toMatchObject({ alias: version });
    }
    const messages = [{ role: "user" as const, content: "Who are you?" }];
    const { response } = await client.openai.chat.completions.create({ model: `${tenant}/${language}`, messages }).withResponse();
    expect(response.headers.get("x-loraline-version")).toBe("2");
  });

  it("ends with what to do where it cannot work", { timeout: 120_000 }, async () => {
    const [usage, stranger, missing, useless, unknown] = await Promise.all([
      start([]),
      start([at("/rows.jsonl"), language], { NATS_PASS: "guessed" }),
      start([at("/missing.jsonl"), language]),
      start([at("/none.jsonl"), language]),
      start([at("/rows.jsonl"), language, "no-such-base"]),
    ]);
    for (const { code } of [usage, stranger, missing, useless, unknown]) expect(code).toBe(1);
    expect(usage.err).toContain("usage: ");
    expect(stranger.err).toContain("Check NATS_URL, NATS_USER (tenant.NAME) and NATS_PASS");
    expect(missing.err).toMatch(/404[^]*`loraline explain [A-Z_]+` says more/);
    expect(useless.err).toMatch(/`loraline explain [A-Z_]+` says more/);
    expect(unknown.err).toMatch(/no-such-base[^]*`loraline explain [A-Z_]+` says more/);
    for (const { out, err } of [usage, stranger, missing, useless, unknown]) expect(out + err).not.toMatch(/Traceback|goroutine|at async/);
  });
});
